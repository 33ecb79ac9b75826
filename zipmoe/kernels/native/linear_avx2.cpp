#include <immintrin.h>

#include "linear_lanes.h"

namespace zipmoe::linear {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8, kTileRows = 4, kStreamRows = 1, kStreamColumns = 1;
  using Vector = __m256;

  static inline Vector zero() { return _mm256_setzero_ps(); }
  static inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static inline void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static inline Vector widen(const uint16_t* bf16) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
  }
  static inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static inline float fold(Vector v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const Kernel* lanes_avx2() { return &Lanes<Avx2>::kKernel; }

}  // namespace zipmoe::linear
