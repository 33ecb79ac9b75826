// The order "pairs" on bf16 weights, with the bf16 dot product of AVX-512.
#include "linear/pairs_avx512.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kAhead = 4096;          // prefetching is this many bytes and sixteen rows ahead

size_t panel_rows(size_t m, size_t) { return m <= kStreamRows ? kOutputs : kPanel; }

size_t scratch_bytes(size_t m, size_t k) { return m <= kStreamRows ? 0 : kPanel * whole_steps(k) * sizeof(uint16_t); }

// 16 rows of weights. The last row of a panel stands for missing rows.
struct Rows {
  const uint16_t* row[kOutputs];
  const char* ahead;  // null: nothing is prefetched

  Rows(const Task& task, const uint16_t* weight, size_t count, bool brings_next)
      : ahead(brings_next ? reinterpret_cast<const char*>(weight + kOutputs * task.k) + kAhead : nullptr) {
    for (size_t i = 0; i < kOutputs; ++i) row[i] = weight + (i < count ? i : count - 1) * task.k;
  }

  // Loads inputs at .. at + 31, or fewer at the end, as 16 turned vectors. A core's own prefetcher does not follow
  // sixteen rows at once, so this function prefetches the next sixteen rows to the second-level cache, in memory order.
  inline void load(size_t at, size_t k, __m512i r[16]) const {
    if (at + kStep <= k) {
      for (size_t i = 0; i < kOutputs; ++i) r[i] = _mm512_loadu_si512(row[i] + at);
      if (ahead != nullptr) {
        for (size_t i = 0; i < kOutputs; ++i) {
          _mm_prefetch(ahead + at * kOutputs * sizeof(uint16_t) + i * 64, _MM_HINT_T1);
        }
      }
    } else {
      const __mmask32 some = (uint32_t{1} << (k - at)) - 1;
      for (size_t i = 0; i < kOutputs; ++i) r[i] = _mm512_maskz_loadu_epi16(some, row[i] + at);
    }
    turn(r);
  }
};

// --- few rows: all rows use the turned weights of a step from registers ----------------------------------------------

template <size_t M>
void stream(const Task& task, const uint16_t* x, const uint16_t* weight, size_t first, size_t count) {
  const size_t stride = stride_of(task.k);
  const Rows rows(task, weight, count, !task.cached);
  __m512 total[M] = {}, part[M] = {}, sum[M];
  for (size_t begin = 0; begin < task.k; begin += task.k_block) {
    const size_t end = smaller(begin + task.k_block, task.k);
    for (size_t m = 0; m < M; ++m) sum[m] = _mm512_setzero_ps();
    for (size_t at = begin; at < end; at += kStep) {
      __m512i turned[kPairsAVector];
      rows.load(at, task.k, turned);
      const size_t pairs = at + kStep <= task.k ? kPairsAVector : (task.k - at + 1) / 2;
      if (pairs == kPairsAVector) {
        for (size_t i = 0; i < kPairsAVector; ++i) {
          for (size_t m = 0; m < M; ++m) sum[m] = multiply_add(sum[m], turned[i], pair_of(x + m * stride + at + 2 * i));
        }
      } else {
        for (size_t i = 0; i < pairs; ++i) {
          for (size_t m = 0; m < M; ++m) sum[m] = multiply_add(sum[m], turned[i], pair_of(x + m * stride + at + 2 * i));
        }
      }
    }
    for (size_t m = 0; m < M; ++m) add_block(task, begin, end, sum[m], &part[m], &total[m]);
  }
  for (size_t m = 0; m < M; ++m) finish(task, m, first, count, total[m]);
}

// --- many rows: a panel of weights is turned once and reused from the cache ------------------------------------------

void turn_panel(const Task& task, const uint16_t* weight, size_t rows, uint16_t* to) {
  const size_t k = task.k;
  for (size_t vector = 0; vector < kTileVectors; ++vector) {
    if (vector * kOutputs >= rows) return;
    const Rows from(task, weight + vector * kOutputs * k, smaller(rows - vector * kOutputs, kOutputs), false);
    for (size_t at = 0; at < k; at += kStep) {
      __m512i turned[kPairsAVector];
      from.load(at, k, turned);
      for (size_t i = 0; i < kPairsAVector; ++i) {
        _mm512_store_si512(to + ((at / 2 + i) * kTileVectors + vector) * kStep, turned[i]);
      }
    }
  }
}

using Stream = void (*)(const Task&, const uint16_t*, const uint16_t*, size_t, size_t);
constexpr Stream kStreams[kStreamRows] = {stream<1>, stream<2>, stream<3>, stream<4>,
                                          stream<5>, stream<6>, stream<7>, stream<8>};

void multiply(const Task& task, const void* packed, const uint16_t* weight, size_t first, size_t rows, void* scratch) {
  const uint16_t* x = static_cast<const uint16_t*>(packed);
  const size_t step = panel_rows(task.m, task.k);
  for (size_t done = 0; done < rows; done += step) {
    const size_t some = smaller(rows - done, step);
    if (task.m <= kStreamRows) {
      kStreams[task.m - 1](task, x, weight + done * task.k, first + done, some);
      continue;
    }
    uint16_t* turned = static_cast<uint16_t*>(scratch);
    turn_panel(task, weight + done * task.k, some, turned);
    const char* next = reinterpret_cast<const char*>(weight + (done + some) * task.k);
    multiply_turned(task, x, turned, first + done, some, task.cached ? nullptr : next);
  }
}

constexpr Kernel kKernel = {packed_bytes, scratch_bytes, panel_rows, pack, multiply};

}  // namespace

const Kernel* pairs_avx512() { return &kKernel; }

}  // namespace zipmoe::linear
