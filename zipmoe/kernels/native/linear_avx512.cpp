#include <immintrin.h>

#include "linear_lanes.h"

namespace zipmoe::linear {
namespace {

struct Avx512 {
  static constexpr size_t kLanes = 16, kTileRows = 8, kStreamRows = 3, kStreamColumns = 2;
  using Vector = __m512;

  static inline Vector zero() { return _mm512_setzero_ps(); }
  static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static inline void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static inline Vector widen(const uint16_t* bf16) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static inline float fold(Vector v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const Kernel* lanes_avx512() { return &Lanes<Avx512>::kKernel; }

}  // namespace zipmoe::linear
