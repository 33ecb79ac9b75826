#include <immintrin.h>

#include "cascade_isa_avx2.h"
#include "linear_cascade.h"
#include "linear_lanes.h"

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
    // The mask comes from memory each time: a tile leaves no register for it.
    __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
    __asm__("vpand %1, %0, %0" : "+x"(both) : "m"(kOdd));
    return _mm256_castsi256_ps(both);
  }
  static inline void prefetch(const uint16_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at) + 1024, _MM_HINT_T0); }
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
};

}  // namespace

const Kernel* lanes_avx2() { return &Lanes<Avx2>::kKernel; }

bool cascade_rows_avx2(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm,
                       const Consumer& consumer) {
  return each_row<cascade::isa::Avx2>(block, scratch, sm, consumer);
}

}  // namespace zipmoe::linear
