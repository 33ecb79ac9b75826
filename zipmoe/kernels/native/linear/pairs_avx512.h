// Shared code of the order "pairs" for bf16 and for compressed weights, with the bf16 dot product of AVX-512: 16
// outputs per vector, one step per pair of inputs. Only for files that are compiled with -mavx512f -mavx512bw
// -mavx512vl -mavx512dq -mavx512bf16.
#ifndef ZIPMOE_KERNELS_LINEAR_PAIRS_AVX512_H
#define ZIPMOE_KERNELS_LINEAR_PAIRS_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "linear/linear.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kOutputs = 16;          // outputs in a vector of sums
constexpr size_t kPairsAVector = 16;     // pairs of inputs in a vector of weights, before they are turned
constexpr size_t kStep = 32;             // inputs in a vector of weights
constexpr size_t kStreamRows = 8;        // rows of x that are computed while the turned weights are in registers
constexpr size_t kTileRows = 12;         // rows of x in a register tile
constexpr size_t kTileVectors = 2;       // vectors of outputs in a register tile
constexpr size_t kPanel = kTileVectors * kOutputs;

inline size_t whole_steps(size_t k) { return (k + kStep - 1) / kStep * kStep; }

// Stride of packed rows of x: zeros up to a whole step, and one step more. Without the extra step, rows could begin a
// page apart and share a set of the first-level cache.
inline size_t stride_of(size_t k) { return whole_steps(k) + kStep; }

inline size_t packed_bytes(size_t m, size_t k) { return m * stride_of(k) * sizeof(uint16_t); }

inline void pack(const Task& task, void* packed) {
  const size_t stride = stride_of(task.k);
  uint16_t* to = static_cast<uint16_t*>(packed);
  for (size_t row = 0; row < task.m; ++row, to += stride) {
    memcpy(to, task.x + row * task.k, task.k * sizeof *to);
    memset(to + task.k, 0, (stride - task.k) * sizeof *to);
  }
}

// Transposes 16 input pairs of 16 rows: one vector per pair, with a row in each lane.
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

// Puts a pair of inputs into every lane of a register. Without the assembler statement, compilers read the pair from
// memory again for each use.
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

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Adds the sum of a block, inputs begin .. end - 1, to the sum of its part, and adds a complete part to the total.
inline void add_block(const Task& task, size_t begin, size_t end, __m512 sum, __m512* part, __m512* total) {
  *part = begin % task.k_part == 0 ? sum : _mm512_add_ps(*part, sum);
  if (end % task.k_part == 0 || end == task.k) *total = end <= task.k_part ? *part : _mm512_add_ps(*total, *part);
}

// --- many rows of x: weights are turned already ----------------------------------------------------------------------

// Lines of memory that are prefetched to the second-level cache, some at each step of a tile.
struct Lines {
  const char* first;
  size_t a_step;

  inline void bring(size_t step) const {
    for (size_t i = 0; i < a_step; ++i) _mm_prefetch(first + (step * a_step + i) * 64, _MM_HINT_T1);
  }
};

template <size_t M>
void tile(const Task& task, const uint16_t* x, size_t row, const uint16_t* turned, size_t first, size_t rows,
          const Lines& ahead) {
  const size_t stride = stride_of(task.k);
  __m512 total[M][kTileVectors] = {}, part[M][kTileVectors] = {}, sum[M][kTileVectors];
  for (size_t begin = 0; begin < task.k; begin += task.k_block) {
    const size_t end = smaller(begin + task.k_block, task.k);
    for (size_t m = 0; m < M; ++m) {
      for (size_t v = 0; v < kTileVectors; ++v) sum[m][v] = _mm512_setzero_ps();
    }
    for (size_t at = begin; at < end; at += 2) {
      if (at % kStep == 0) ahead.bring(at / kStep);
      __m512i w[kTileVectors];
      for (size_t v = 0; v < kTileVectors; ++v) w[v] = _mm512_load_si512(turned + (at / 2 * kTileVectors + v) * kStep);
      for (size_t m = 0; m < M; ++m) {
        const __m512i inputs = pair_of(x + m * stride + at);
        for (size_t v = 0; v < kTileVectors; ++v) sum[m][v] = multiply_add(sum[m][v], w[v], inputs);
      }
    }
    for (size_t m = 0; m < M; ++m) {
      for (size_t v = 0; v < kTileVectors; ++v) {
        add_block(task, begin, end, sum[m][v], &part[m][v], &total[m][v]);
      }
    }
  }
  for (size_t m = 0; m < M; ++m) {
    for (size_t v = 0; v < kTileVectors && v * kOutputs < rows; ++v) {
      finish(task, row + m, first + v * kOutputs, smaller(rows - v * kOutputs, kOutputs), total[m][v]);
    }
  }
}

using Tile = void (*)(const Task&, const uint16_t*, size_t, const uint16_t*, size_t, size_t,
                      const Lines&);
constexpr Tile kTiles[kTileRows] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

// Multiplies all rows of x with turned weights of up to kPanel outputs. Prefetches the weights at `next_panel`
// meanwhile, unless `next_panel` is null.
inline void multiply_turned(const Task& task, const uint16_t* x, const uint16_t* turned, size_t first, size_t rows,
                            const char* next_panel) {
  const size_t tiles = (task.m + kTileRows - 1) / kTileRows;  // of nearly equal size
  const size_t a_step = next_panel == nullptr ? 0 : (kPanel + tiles - 1) / tiles;
  for (size_t t = 0; t < tiles; ++t) {
    const size_t row = t * task.m / tiles, next = (t + 1) * task.m / tiles;
    kTiles[next - row - 1](task, x + row * stride_of(task.k), row, turned, first, rows,
                          {next_panel + t * a_step * (whole_steps(task.k) / kStep) * 64, a_step});
  }
}

}  // namespace
}  // namespace zipmoe::linear

#endif
