#include <immintrin.h>

#include "cascade/isa/avx512.h"
#include "linear/cascade.h"
#include "linear/lanes.h"
#include "linear/lanes_cascade.h"
#include "linear/lanes_x86.h"

namespace zipmoe::linear {
namespace {

struct Avx512 {
  static constexpr size_t kLanes = 16, kTileRows = 8, kWidenRows = 48, kStreamRows = 3, kFolded = 8;
  using Vector = __m512;

  static inline Vector zero() { return _mm512_setzero_ps(); }
  static inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static inline void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
  static inline Vector even(const uint16_t* bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(bf16), 16));
  }
  static inline Vector odd(const uint16_t* bf16) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(bf16), _mm512_set1_epi32(-65536)));
  }
  static inline void prefetch(const uint16_t* at) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + 4096, _MM_HINT_T1);
  }
  static inline void prefetch_far(const char* line) { _mm_prefetch(line, _MM_HINT_T1); }
  static inline Vector keep(Vector v) {
    __asm__("" : "+v"(v));
    return v;
  }
  static inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static inline void fold(const Vector* e, const Vector* o, float* to) {
    Vector eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) {  // quarters: two of e, two of o
      eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(e[i], o[i], 0x44), _mm512_shuffle_f32x4(e[i], o[i], 0xee));
    }
    for (int i = 0; i < 4; ++i) {  // quarters: e and o of one sum, e and o of another
      four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88),
                              _mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd));
    }
    for (int i = 0; i < 2; ++i) {
      const __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
      two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const Vector one = _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
    const Vector both = _mm512_add_ps(_mm512_shuffle_f32x4(one, one, 0x08), _mm512_shuffle_f32x4(one, one, 0x0d));
    _mm256_storeu_ps(to, _mm512_castps512_ps256(both));
  }

  // For recovered weights: lanes in the order of the interleaved bytes.
  static inline void widen(const cascade::isa::Avx512::Halves& halves, Vector* w) {
    widen(_mm512_unpacklo_epi8(halves.low, halves.high), _mm512_unpackhi_epi8(halves.low, halves.high), w);
  }
  static inline void widen(const uint8_t* bf16, Vector* w) {
    const __m512i first = _mm512_loadu_si512(bf16), second = _mm512_loadu_si512(bf16 + 64);
    widen(_mm512_shuffle_i32x4(first, second, 0x88), _mm512_shuffle_i32x4(first, second, 0xdd), w);
  }
  // Groups of eight lanes: the even groups, then the odd groups; in each the even lanes, then the odd lanes.
  static inline void widen(__m512i even_eights, __m512i odd_eights, Vector* w) {
    const __m512i mask = _mm512_set1_epi32(-65536);
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(even_eights, 16));
    w[1] = _mm512_castsi512_ps(_mm512_and_si512(even_eights, mask));
    w[2] = _mm512_castsi512_ps(_mm512_slli_epi32(odd_eights, 16));
    w[3] = _mm512_castsi512_ps(_mm512_and_si512(odd_eights, mask));
  }
  static inline float fold(const Vector* sum) {
    __m128 eight[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 both = _mm256_add_ps(_mm512_castps512_ps256(sum[i]), _mm512_extractf32x8_ps(sum[i], 1));
      eight[i] = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    }
    return fold_eight(_mm_add_ps(eight[0], eight[2]), _mm_add_ps(eight[1], eight[3]));
  }
};

}  // namespace

const BlockKernel* lanes_blocks_avx512() { return &LaneBlocks<Avx512, cascade::isa::Avx512>::kBlocks; }

const Kernel* lanes_avx512() { return &Lanes<Avx512>::kKernel; }

bool cascade_rows_avx512(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm,
                       const Consumer& consumer) {
  return each_row<cascade::isa::Avx512>(block, scratch, sm, consumer);
}

}  // namespace zipmoe::linear
