#include <immintrin.h>

#include "attention/fours.h"

namespace zipmoe::attention {
namespace {

struct Avx2 {
  static constexpr size_t kLanes = 8;
  using Vector = __m256;

  static inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static inline void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static inline Vector all(float value) { return _mm256_set1_ps(value); }
  static inline __m256i both(const uint16_t* bf16) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16)); }
  static inline Vector even(const uint16_t* bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(both(bf16), 16)); }
  static inline Vector odd(const uint16_t* bf16) {
    return _mm256_castsi256_ps(_mm256_and_si256(both(bf16), _mm256_set1_epi32(-65536)));
  }
  static inline Vector add_product(Vector sum, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, sum); }
  // Rounds twice: the file is compiled with -ffp-contract=off.
  static inline Vector add_rounded(Vector sum, Vector a, Vector b) { return _mm256_add_ps(sum, _mm256_mul_ps(a, b)); }
};

}  // namespace

const Kernel* fours_avx2() { return &Fours<Avx2>::kKernel; }

}  // namespace zipmoe::attention
