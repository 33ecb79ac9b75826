#include <immintrin.h>

#include "linear/lanes_avx2.h"
#include "nibble/product.h"

namespace zipmoe::nibble {
namespace {

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_bytes(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }

struct Avx2 : linear::Avx2 {
  static constexpr size_t kTileRows = 4, kStreamRows = 0, kWidenRows = SIZE_MAX;
  template <size_t R>
  static constexpr size_t kTogether = R == 1 ? 2 : 1;

  struct Tables {
    __m256i high[kOutputs];  // of each nibble
  };

  static inline Tables tables(const uint8_t* bytes) {
    Tables tables;
    for (size_t output = 0; output < kOutputs; ++output, bytes += kRanks) {
      const __m128i plus = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      const __m128i minus = _mm_or_si128(plus, _mm_set1_epi8(static_cast<char>(0x80)));
      tables.high[output] = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(plus, minus));
    }
    return tables;
  }

  // The weights of an output in a group: each step in the lanes' order.
  static inline __attribute__((always_inline)) void merge(const uint8_t* group, const Tables& tables,
                                                          __m256i (&steps)[kOutputs][kGroupSteps]) {
    const __m256i nibbles = load_bytes(group + kGroup), low = _mm256_set1_epi8(0x0f);
    const __m256i ranks[kOutputs] = {_mm256_and_si256(nibbles, low),
                                     _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), low)};
    for (size_t output = 0; output < kOutputs; ++output) {
      const __m256i lows = load_bytes(group + output * kOutputPlaces);
      const __m256i highs = _mm256_shuffle_epi8(tables.high[output], ranks[output]);
      steps[output][0] = _mm256_unpacklo_epi8(lows, highs);
      steps[output][1] = _mm256_unpackhi_epi8(lows, highs);
    }
  }

  static inline __attribute__((always_inline)) void widen(const uint8_t* group, const Tables& tables, Vector* w) {
    __m256i steps[kOutputs][kGroupSteps];
    merge(group, tables, steps);
    const __m256i odd = _mm256_set1_epi32(-65536);
    for (size_t step = 0; step < kGroupSteps; ++step) {
      for (size_t output = 0; output < kOutputs; ++output) {
        *w++ = _mm256_castsi256_ps(_mm256_slli_epi32(steps[output][step], 16));
        *w++ = _mm256_castsi256_ps(_mm256_and_si256(steps[output][step], odd));
      }
    }
  }
};

void recover(const Tile& tile, size_t pass, uint16_t* const* rows) {
  const Avx2::Tables tables = Avx2::tables(tile.tables);
  const uint8_t* group = tile.groups[pass];
  for (size_t i = 0; i < tile.coded; ++i, group += kGroupBytes) {
    __m256i steps[kOutputs][kGroupSteps];
    Avx2::merge(group, tables, steps);
    for (size_t output = 0; output < kOutputs; ++output) {
      uint16_t* to = rows[output] + i * kGroupInputs + pass * kPassLanes;
      for (size_t step = 0; step < kGroupSteps; ++step) store_bytes(to + step * kLanes, steps[output][step]);
    }
  }
}

size_t code(const Pair& rows, size_t pass, size_t groups, const uint8_t* tables, uint8_t* out, uint8_t* listed,
            size_t most) {
  __m256i highs_of[kOutputs][kRanks];
  for (size_t output = 0; output < kOutputs; ++output) {
    for (size_t rank = 0; rank < kRanks; ++rank) {
      highs_of[output][rank] = _mm256_set1_epi8(static_cast<char>(tables[output * kRanks + rank]));
    }
  }
  const __m256i low_byte = _mm256_set1_epi16(0xff), no_sign = _mm256_set1_epi8(0x7f);
  size_t exceptions = 0;
  for (size_t i = 0; i < groups; ++i, out += kGroupBytes) {
    __m256i nibbles[kOutputs];
    uint32_t ranked[kOutputs];
    for (size_t output = 0; output < kOutputs; ++output) {
      const uint16_t* from = rows.row[output] + i * kGroupInputs + pass * kPassLanes;
      const __m256i first = load_bytes(from), second = load_bytes(from + kLanes);
      store_bytes(out + output * kOutputPlaces,
            _mm256_packus_epi16(_mm256_and_si256(first, low_byte), _mm256_and_si256(second, low_byte)));
      const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8));
      const __m256i exponent = _mm256_and_si256(high, no_sign);
      __m256i rank = _mm256_setzero_si256();  // with the sign bit if there is one
      for (size_t r = 0; r < kRanks; ++r) {
        const __m256i is = _mm256_cmpeq_epi8(exponent, highs_of[output][r]);
        rank = _mm256_or_si256(rank, _mm256_and_si256(is, _mm256_set1_epi8(static_cast<char>(0x80 | r))));
      }
      ranked[output] = static_cast<uint32_t>(_mm256_movemask_epi8(rank));
      const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(high, 4), _mm256_set1_epi8(kRanks));
      nibbles[output] = _mm256_or_si256(_mm256_and_si256(rank, _mm256_set1_epi8(kRanks - 1)), sign);
    }
    store_bytes(out + kGroup, _mm256_or_si256(nibbles[0], _mm256_slli_epi16(nibbles[1], 4)));
    if (__builtin_expect((ranked[0] & ranked[1]) != UINT32_MAX, false)) {
      uint64_t missing = ~(ranked[0] | uint64_t{ranked[1]} << 32);
      for (; missing != 0; missing &= missing - 1, ++exceptions) {
        if (exceptions >= most) continue;
        const size_t place = static_cast<size_t>(__builtin_ctzll(missing));
        put_exception(rows, pass, i * kGroup + place, listed + exceptions * kExceptionBytes);
      }
    }
  }
  return exceptions;
}

constexpr Kernel kKernel = {code,
                            recover,
                            linear::Lanes<Avx2>::packed_bytes,
                            linear::Lanes<Avx2>::pack,
                            Product<Avx2>::scratch_bytes,
                            Product<Avx2>::multiply};

}  // namespace

const Kernel* kernel_avx2() { return &kKernel; }

}  // namespace zipmoe::nibble
