// 64 weights of a cascade with AVX-512. Only for files that are compiled with -mavx512f -mavx512bw -mavx512vl
// -mavx512dq -mavx512vbmi -mavx512vbmi2 -mpopcnt.
#ifndef ZIPMOE_KERNELS_CASCADE_ISA_AVX512_H
#define ZIPMOE_KERNELS_CASCADE_ISA_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::cascade::isa {

struct Avx512 {
  static constexpr MergePlanes kMerge = merge_planes_avx2;
  static constexpr bool kStreams = true;

  using Ranks = __m512i;

  // Each exponent as its bits in the two bytes of a weight: the lowest bit above the mantissa, the others below the
  // sign.
  struct Table {
    __m512i exponent, low, high;
  };

  static inline Ranks ranks(const uint8_t* codes, uint8_t first, const uint8_t*& escapes) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // Each quarter of the vector takes one bit pair of all 16 bytes: byte i of 8 starts at bit 8i + 2 * quarter.
    const __m512i begin = _mm512_set_epi64(0x3e362e261e160e06, 0x3e362e261e160e06, 0x3c342c241c140c04,
                                           0x3c342c241c140c04, 0x3a322a221a120a02, 0x3a322a221a120a02,
                                           0x3830282018100800, 0x3830282018100800);
    const __m512i pair = _mm512_set1_epi8(3);
    const __m512i code = _mm512_and_si512(_mm512_multishift_epi64_epi8(begin, bytes), pair);
    const __mmask64 escaped = _mm512_cmpeq_epi8_mask(code, pair);
    const __m512i next = _mm512_loadu_si512(escapes);
    escapes += _mm_popcnt_u64(escaped);
    return _mm512_mask_expand_epi8(_mm512_add_epi8(code, _mm512_set1_epi8(static_cast<char>(first))), escaped, next);
  }

  // Counts the escapes of some groups of codes.
  static inline size_t escapes_in(const uint8_t* codes, size_t groups) {
    const __m512i odd = _mm512_set1_epi8(0x55), two = _mm512_set1_epi8(0x33), four = _mm512_set1_epi8(0x0f);
    __m512i sums = _mm512_setzero_si512();
    for (size_t i = 0; i < groups; i += 4, codes += 4 * 16) {
      const __mmask8 some = groups - i < 4 ? static_cast<__mmask8>((1 << 2 * (groups - i)) - 1) : 0xff;
      const __m512i code = _mm512_maskz_loadu_epi64(some, codes);
      // 0x80: the conjunction of both bits of a code, at the place of the lower bit. Then counts the set bits per byte.
      const __m512i escape = _mm512_ternarylogic_epi32(code, _mm512_srli_epi64(code, 1), odd, 0x80);
      const __m512i shifted = _mm512_srli_epi64(escape, 2);
      const __m512i pairs = _mm512_add_epi8(_mm512_and_si512(escape, two), _mm512_and_si512(shifted, two));
      const __m512i bytes = _mm512_and_si512(_mm512_add_epi8(pairs, _mm512_srli_epi64(pairs, 4)), four);
      sums = _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    }
    return static_cast<size_t>(_mm512_reduce_add_epi64(sums));
  }

  static inline void store(Ranks ranks, uint8_t* out) { _mm512_storeu_si512(out, ranks); }

  static inline Table table(const uint8_t* bytes) {
    const __m512i exponent = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    return {exponent, _mm512_and_si512(_mm512_slli_epi16(exponent, 7), sign),
            _mm512_andnot_si512(sign, _mm512_srli_epi16(exponent, 1))};
  }

  static inline void exponents(Ranks ranks, const Table& table, uint8_t* e) {
    store(_mm512_shuffle_epi8(table.exponent, ranks), e);
  }

  // The low and the high bytes of 64 weights.
  struct Halves {
    __m512i low, high;
  };

  static inline Halves halves(Ranks ranks, const Table& table, const uint8_t* sm) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i s = _mm512_loadu_si512(sm);
    // 0xf2: exponent | (~sign & s); 0xf8: exponent | (sign & s).
    return {_mm512_ternarylogic_epi32(_mm512_shuffle_epi8(table.low, ranks), sign, s, 0xf2),
            _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(table.high, ranks), sign, s, 0xf8)};
  }

  template <bool kStream = false>
  static inline void weights(Ranks ranks, const Table& table, const uint8_t* sm, uint8_t* bf16) {
    const auto [low, high] = halves(ranks, table, sm);
    const __m512i halves = _mm512_set_epi64(0x5f1f5e1e5d1d5c1c, 0x5b1b5a1a59195818, 0x5717561655155414,
                                            0x5313521251115010, 0x4f0f4e0e4d0d4c0c, 0x4b0b4a0a49094808,
                                            0x4707460645054404, 0x4303420241014000);
    const __m512i first = _mm512_permutex2var_epi8(low, halves, high);
    const __m512i second = _mm512_permutex2var_epi8(low, _mm512_add_epi8(halves, _mm512_set1_epi8(32)), high);
    if (kStream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(bf16), first);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(bf16 + 64), second);
    } else {
      _mm512_storeu_si512(bf16, first);
      _mm512_storeu_si512(bf16 + 64, second);
    }
  }

  static inline void stream_group(const uint8_t* from, uint8_t* bf16) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(bf16), _mm512_loadu_si512(from));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(bf16 + 64), _mm512_loadu_si512(from + 64));
  }

  static inline void finish_stream() { _mm_sfence(); }
};

}  // namespace zipmoe::cascade::isa

#endif
