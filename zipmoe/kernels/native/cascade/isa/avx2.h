// 64 weights of a cascade with AVX2. Only for files that are compiled with -mavx2 -mpopcnt.
#ifndef ZIPMOE_KERNELS_CASCADE_ISA_AVX2_H
#define ZIPMOE_KERNELS_CASCADE_ISA_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::cascade::isa {

struct Avx2 {
  static constexpr MergePlanes kMerge = merge_planes_avx2;
  static constexpr bool kStreams = true;

  struct Ranks {
    __m256i half[2];
  };

  // Each exponent as its bits in the two bytes of a weight: the lowest bit above the mantissa, the others below the
  // sign.
  struct Table {
    __m256i exponent, low, high;
  };

  // With 1 for an escape, a multiplication by 0x01010101 would sum the bytes up to each byte. An escape is 255 here, so
  // the factor is divided by 255.
  static constexpr uint32_t kOnesOver255 = 0xfbfcfdff;  // 0x01010101 / 255 modulo 2^32

  static inline __m256i rank_half(__m256i code, __m256i first, const uint8_t*& escapes) {
    const __m256i escaped = _mm256_cmpeq_epi8(code, _mm256_set1_epi8(3));
    const __m256i from_4_before = _mm256_broadcastsi128_si256(_mm_setr_epi32(-1, 0x03030303, 0x07070707, 0x0b0b0b0b));
    const __m256i from_8_before = _mm256_broadcastsi128_si256(_mm_setr_epi32(-1, -1, 0x03030303, 0x07070707));
    // Counts the escapes up to each weight within 16 weights: a multiplication counts within 4 weights, and the counts
    // of the earlier weights are added.
    __m256i count = _mm256_mullo_epi32(escaped, _mm256_set1_epi32(static_cast<int>(kOnesOver255)));
    count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, from_4_before));
    count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, from_8_before));
    const __m256i index = _mm256_add_epi8(count, _mm256_set1_epi8(-1));
    const uint32_t mask = static_cast<uint32_t>(_mm256_movemask_epi8(escaped));
    const uint8_t* second = escapes + _mm_popcnt_u32(mask << 16);
    const __m256i next =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(escapes))),
                                _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
    escapes += _mm_popcnt_u32(mask);
    return _mm256_blendv_epi8(_mm256_add_epi8(code, first), _mm256_shuffle_epi8(next, index), escaped);
  }

  static inline Ranks ranks(const uint8_t* codes, uint8_t first, const uint8_t*& escapes) {
    const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m256i pair = _mm256_set1_epi8(3), add = _mm256_set1_epi8(static_cast<char>(first));
    const __m256i low_pairs = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2);
    const __m256i high_pairs = _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6);
    const __m256i low = _mm256_and_si256(_mm256_srlv_epi32(bytes, low_pairs), pair);
    const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(bytes, high_pairs), pair);
    const __m256i first_half = rank_half(low, add, escapes);
    return {{first_half, rank_half(high, add, escapes)}};
  }

  static inline void store(const Ranks& ranks, uint8_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), ranks.half[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), ranks.half[1]);
  }

  static inline Table table(const uint8_t* bytes) {
    const __m256i exponent =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
    return {exponent, _mm256_and_si256(_mm256_slli_epi16(exponent, 7), sign),
            _mm256_andnot_si256(sign, _mm256_srli_epi16(exponent, 1))};
  }

  static inline void exponents(const Ranks& ranks, const Table& table, uint8_t* e) {
    store({{_mm256_shuffle_epi8(table.exponent, ranks.half[0]), _mm256_shuffle_epi8(table.exponent, ranks.half[1])}},
          e);
  }

  // The low and the high bytes of 64 weights.
  struct Halves {
    __m256i low[2], high[2];
  };

  static inline Halves halves(const Ranks& ranks, const Table& table, const uint8_t* sm) {
    const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
    Halves halves;
    for (int half = 0; half < 2; ++half) {
      const __m256i s = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sm + 32 * half));
      halves.low[half] =
          _mm256_or_si256(_mm256_shuffle_epi8(table.low, ranks.half[half]), _mm256_andnot_si256(sign, s));
      halves.high[half] =
          _mm256_or_si256(_mm256_shuffle_epi8(table.high, ranks.half[half]), _mm256_and_si256(sign, s));
    }
    return halves;
  }

  template <bool kStream = false>
  static inline void weights(const Ranks& ranks, const Table& table, const uint8_t* sm, uint8_t* bf16) {
    const Halves both = halves(ranks, table, sm);
    for (int half = 0; half < 2; ++half) {
      const __m256i low = both.low[half], high = both.high[half];
      // Interleaves within 128 bits: quarters 0 and 2 of the weights, then 1 and 3.
      const __m256i even = _mm256_unpacklo_epi8(low, high), odd = _mm256_unpackhi_epi8(low, high);
      __m256i* out = reinterpret_cast<__m256i*>(bf16 + 64 * half);
      const __m256i first = _mm256_permute2x128_si256(even, odd, 0x20);
      const __m256i second = _mm256_permute2x128_si256(even, odd, 0x31);
      if (kStream) {
        _mm256_stream_si256(out, first);
        _mm256_stream_si256(out + 1, second);
      } else {
        _mm256_storeu_si256(out, first);
        _mm256_storeu_si256(out + 1, second);
      }
    }
  }

  static inline void stream_group(const uint8_t* from, uint8_t* bf16) {
    for (int i = 0; i < 128; i += 32) {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(bf16 + i), weights);
    }
  }

  static inline void finish_stream() { _mm_sfence(); }
};

}  // namespace zipmoe::cascade::isa

#endif
