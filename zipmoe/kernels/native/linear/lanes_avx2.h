// The order "lanes" with AVX2, for linear/lanes.h. Only for files that are compiled with -mavx2 -mfma -mpopcnt.
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_AVX2_H
#define ZIPMOE_KERNELS_LINEAR_LANES_AVX2_H

#include <immintrin.h>

#include "cascade/isa/avx2.h"
#include "linear/lanes.h"
#include "linear/lanes_x86.h"

namespace zipmoe::linear {
namespace {

alignas(32) constexpr uint32_t kOdd[8] = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000,
                                         0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};

struct Avx2 {
  static constexpr size_t kLanes = 8, kTileRows = 4, kWidenRows = 48, kStreamRows = 1, kFolded = 4;
  using Vector = __m256;

  static inline Vector zero() { return _mm256_setzero_ps(); }
  static inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static inline void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static inline Vector even(const uint16_t* bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16)), 16));
  }
  static inline Vector odd(const uint16_t* bf16) {
    // Reads the mask from memory at each use, because a tile leaves no free register.
    __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
    __asm__("vpand %1, %0, %0" : "+x"(both) : "m"(kOdd));
    return _mm256_castsi256_ps(both);
  }
  static inline void prefetch(const uint16_t* at) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + 4096, _MM_HINT_T1);
  }
  static inline void prefetch_far(const char* line) { _mm_prefetch(line, _MM_HINT_T1); }
  static inline Vector keep(Vector v) {
    __asm__("" : "+x"(v));
    return v;
  }
  static inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static inline void fold(const Vector* e, const Vector* o, float* to) {
    Vector four[4], two[2];
    for (int i = 0; i < 4; ++i) {  // halves: of e, of o
      four[i] = _mm256_add_ps(_mm256_permute2f128_ps(e[i], o[i], 0x20), _mm256_permute2f128_ps(e[i], o[i], 0x31));
    }
    for (int i = 0; i < 2; ++i) {
      const __m256d a = _mm256_castps_pd(four[2 * i]), b = _mm256_castps_pd(four[2 * i + 1]);
      two[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    const Vector one = _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
  }

  // For recovered weights: lanes in the order of the interleaved bytes.
  static inline void widen(const cascade::isa::Avx2::Halves& halves, Vector* w) {
    for (int half = 0; half < 2; ++half, w += 4) {
      widen(_mm256_unpacklo_epi8(halves.low[half], halves.high[half]),
            _mm256_unpackhi_epi8(halves.low[half], halves.high[half]), w);
    }
  }
  static inline void widen(const uint8_t* bf16, Vector* w) {
    for (int half = 0; half < 2; ++half, bf16 += 64, w += 4) {
      const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
      const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16 + 32));
      widen(_mm256_permute2x128_si256(first, second, 0x20), _mm256_permute2x128_si256(first, second, 0x31), w);
    }
  }
  // Groups of eight lanes: groups 0 and 2 of 32 lanes, then 1 and 3; in each the even lanes, then the odd lanes.
  static inline void widen(__m256i even_eights, __m256i odd_eights, Vector* w) {
    const __m256i mask = _mm256_set1_epi32(-65536);
    w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(even_eights, 16));
    w[1] = _mm256_castsi256_ps(_mm256_and_si256(even_eights, mask));
    w[2] = _mm256_castsi256_ps(_mm256_slli_epi32(odd_eights, 16));
    w[3] = _mm256_castsi256_ps(_mm256_and_si256(odd_eights, mask));
  }
  static inline float fold(const Vector* sum) {
    __m128 eight[4];
    for (int i = 0; i < 4; ++i) {
      const Vector both = _mm256_add_ps(sum[i], sum[i + 4]);
      eight[i] = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    }
    return fold_eight(_mm_add_ps(eight[0], eight[2]), _mm_add_ps(eight[1], eight[3]));
  }
};

}  // namespace
}  // namespace zipmoe::linear

#endif
