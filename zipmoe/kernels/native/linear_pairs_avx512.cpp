// The order "pairs" with AVX-512 and its bf16 dot product: 16 outputs a vector, one step for each pair of inputs.
#include <immintrin.h>
#include <string.h>

#include "linear.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kOutputs = 16;          // a vector of them
constexpr size_t kPairsAVector = 16;     // pairs of inputs in a vector of weights, before they are turned
constexpr size_t kStep = 32;             // inputs in a vector of weights
constexpr size_t kStreamRows = 8;        // rows of x that are computed while the turned weights are in registers
constexpr size_t kTileRows = 12;         // rows of x in a register tile
constexpr size_t kTileVectors = 2;       // vectors of outputs in a register tile
constexpr size_t kPanel = kTileVectors * kOutputs;
constexpr size_t kAhead = 4096;          // bytes, beside a whole vector of rows, that prefetching is ahead

size_t whole_steps(size_t k) { return (k + kStep - 1) / kStep * kStep; }

// Rows of x, each with zeros up to a whole step and one step more: rows that begin a page apart would share a set of the
// first-level cache.
size_t stride_of(size_t k) { return whole_steps(k) + kStep; }

size_t packed_bytes(size_t m, size_t k) { return m * stride_of(k) * sizeof(uint16_t); }

void pack(const Task& task, void* packed) {
  const size_t stride = stride_of(task.k);
  uint16_t* to = static_cast<uint16_t*>(packed);
  for (size_t row = 0; row < task.m; ++row, to += stride) {
    memcpy(to, task.x + row * task.k, task.k * sizeof *to);
    memset(to + task.k, 0, (stride - task.k) * sizeof *to);
  }
}

size_t panel_rows(size_t m, size_t) { return m <= kStreamRows ? kOutputs : kPanel; }

size_t scratch_bytes(size_t m, size_t k) { return m <= kStreamRows ? 0 : kPanel * whole_steps(k) * sizeof(uint16_t); }

// 16 inputs pairs of 16 rows, to one vector a pair with a row in each lane.
inline void turn(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// 16 rows of weights; where a panel has fewer, its last one stands for the missing ones.
struct Rows {
  const uint16_t* row[kOutputs];
  const char* ahead;  // null: nothing is prefetched

  Rows(const Task& task, const uint16_t* weight, size_t count)
      : ahead(task.cached ? nullptr : reinterpret_cast<const char*>(weight + kOutputs * task.k) + kAhead) {
    for (size_t i = 0; i < kOutputs; ++i) row[i] = weight + (i < count ? i : count - 1) * task.k;
  }

  // Inputs at .. at + 31, or as many as there are, as 16 turned vectors. Sixteen rows at once are more than a core
  // foresees by itself, so the next sixteen are brought to the second-level cache in the order they have in memory.
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

// A pair of inputs in every lane. In a register: compilers would read it from memory again for each use.
inline __m512i pair_of(const uint16_t* x) {
  int pair;
  memcpy(&pair, x, sizeof pair);
  __m512i everywhere = _mm512_set1_epi32(pair);
  __asm__("" : "+v"(everywhere));
  return everywhere;
}

inline __m512 multiply_add(__m512 sum, __m512i weights, __m512i inputs) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(inputs));
}

inline void finish(const Task& task, size_t row, size_t first, size_t count, __m512 sum) {
  const __mmask16 some = static_cast<__mmask16>((uint32_t{1} << count) - 1);
  if (task.bias != nullptr) {
    const __m256i bias = _mm256_maskz_loadu_epi16(some, task.bias + first);
    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bias), 16)));
  }
  _mm256_mask_storeu_epi16(task.out + row * task.n + first, some,
                           reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
}

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// --- few rows: the turned weights of a step are used by all of them, in registers ------------------------------------

template <size_t M>
void stream(const Task& task, const uint16_t* x, const uint16_t* weight, size_t first, size_t count) {
  const size_t stride = stride_of(task.k);
  const Rows rows(task, weight, count);
  __m512 total[M] = {}, sum[M];
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
    for (size_t m = 0; m < M; ++m) total[m] = begin == 0 ? sum[m] : _mm512_add_ps(total[m], sum[m]);
  }
  for (size_t m = 0; m < M; ++m) finish(task, m, first, count, total[m]);
}

// --- many rows: a panel of weights is turned once and reused from cache -----------------------------------------------

void turn_panel(const Task& task, const uint16_t* weight, size_t rows, uint16_t* to) {
  const size_t k = task.k;
  for (size_t vector = 0; vector < kTileVectors; ++vector) {
    if (vector * kOutputs >= rows) return;
    const Rows from(task, weight + vector * kOutputs * k, smaller(rows - vector * kOutputs, kOutputs));
    for (size_t at = 0; at < k; at += kStep) {
      __m512i turned[kPairsAVector];
      from.load(at, k, turned);
      for (size_t i = 0; i < kPairsAVector; ++i) {
        _mm512_store_si512(to + ((at / 2 + i) * kTileVectors + vector) * kStep, turned[i]);
      }
    }
  }
}

template <size_t M>
void tile(const Task& task, const uint16_t* x, size_t row, const uint16_t* turned, size_t first, size_t rows) {
  const size_t stride = stride_of(task.k);
  __m512 total[M][kTileVectors] = {}, sum[M][kTileVectors];
  for (size_t begin = 0; begin < task.k; begin += task.k_block) {
    const size_t end = smaller(begin + task.k_block, task.k);
    for (size_t m = 0; m < M; ++m) {
      for (size_t v = 0; v < kTileVectors; ++v) sum[m][v] = _mm512_setzero_ps();
    }
    for (size_t at = begin; at < end; at += 2) {
      __m512i w[kTileVectors];
      for (size_t v = 0; v < kTileVectors; ++v) w[v] = _mm512_load_si512(turned + (at / 2 * kTileVectors + v) * kStep);
      for (size_t m = 0; m < M; ++m) {
        const __m512i inputs = pair_of(x + m * stride + at);
        for (size_t v = 0; v < kTileVectors; ++v) sum[m][v] = multiply_add(sum[m][v], w[v], inputs);
      }
    }
    for (size_t m = 0; m < M; ++m) {
      for (size_t v = 0; v < kTileVectors; ++v) {
        total[m][v] = begin == 0 ? sum[m][v] : _mm512_add_ps(total[m][v], sum[m][v]);
      }
    }
  }
  for (size_t m = 0; m < M; ++m) {
    for (size_t v = 0; v < kTileVectors && v * kOutputs < rows; ++v) {
      finish(task, row + m, first + v * kOutputs, smaller(rows - v * kOutputs, kOutputs), total[m][v]);
    }
  }
}

using Stream = void (*)(const Task&, const uint16_t*, const uint16_t*, size_t, size_t);
constexpr Stream kStreams[kStreamRows] = {stream<1>, stream<2>, stream<3>, stream<4>,
                                          stream<5>, stream<6>, stream<7>, stream<8>};

using Tile = void (*)(const Task&, const uint16_t*, size_t, const uint16_t*, size_t, size_t);
constexpr Tile kTiles[kTileRows] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

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
    const size_t tiles = (task.m + kTileRows - 1) / kTileRows;  // of nearly equal size
    for (size_t t = 0; t < tiles; ++t) {
      const size_t row = t * task.m / tiles, next = (t + 1) * task.m / tiles;
      kTiles[next - row - 1](task, x + row * stride_of(task.k), row, turned, first + done, some);
    }
  }
}

constexpr Kernel kKernel = {packed_bytes, scratch_bytes, panel_rows, pack, multiply};

}  // namespace

const Kernel* pairs_avx512() { return &kKernel; }

}  // namespace zipmoe::linear
