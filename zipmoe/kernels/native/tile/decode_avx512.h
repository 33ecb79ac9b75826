// Decodes the groups of a block to operands of vdpbf16ps, with AVX-512. Only for files that are compiled with
// -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mpopcnt.
//
// An operand has 16 outputs, one in each lane, and two inputs, the even one in the lower half. A group decodes to two
// operands: outputs 0 to 15 and outputs 16 to 31. Unpacking interleaves the bytes of a quarter of a vector, so that
// weight p of a group is input p % 2 of output 16 * (p % 16 / 8) + 4 * (p / 16) + p % 8 / 2.
#ifndef ZIPMOE_KERNELS_TILE_DECODE_AVX512_H
#define ZIPMOE_KERNELS_TILE_DECODE_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "tile/outline.h"

namespace zipmoe::tile {
namespace {

#define ZIPMOE_INLINE inline __attribute__((always_inline))

// Memory for the offsets of a block's escapes, large enough for all claims of a hostile block: whole groups of codes,
// and a read of a whole vector behind the last one.
struct Escapes {
  alignas(64) uint8_t even[kMostCodes + 2 * kGroup];
  alignas(64) uint8_t odd[kMostCodes + 2 * kGroup];
};

// 64 codes in the lowest two bits of each byte, with other bits above.
ZIPMOE_INLINE __m512i codes_of(const uint8_t* bytes) {
  const __m512i shifts = _mm512_set_epi64(0x3e362e261e160e06, 0x3e362e261e160e06, 0x3c342c241c140c04, 0x3c342c241c140c04,
                                          0x3a322a221a120a02, 0x3a322a221a120a02, 0x3830282018100800, 0x3830282018100800);
  const __m128i group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return _mm512_multishift_epi64_epi8(shifts, _mm512_broadcast_i32x4(group));
}

ZIPMOE_INLINE __mmask64 escapes_in(__m512i codes) { return _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(3)); }

// The table of a level: offsets of codes 0 to 3 in all lanes. Code 0 is an escape, on the last level the last rank.
inline __m512i level_table(const uint8_t* table, int level) {
  const uint8_t* ranks = table + 3 * level;
  const uint32_t offsets = table[kRanks - 1] | uint32_t{ranks[0]} << 8 | uint32_t{ranks[1]} << 16 | uint32_t{ranks[2]} << 24;
  return _mm512_set1_epi32(static_cast<int>(offsets));
}

// Expands levels 5 to 2. Returns the offsets of level 1's escapes, or null if the levels do not fit together.
inline const uint8_t* expand(const Block& block, const uint8_t* table, Escapes* memory) {
  const uint8_t* deeper = nullptr;
  uint8_t* to = memory->even;
  for (int level = kLevels - 1; level > 0; --level) {
    const __m512i offsets = level_table(table, level);
    const uint8_t *codes = block.levels[level], *escapes = deeper;
    to = level % 2 ? memory->odd : memory->even;
    for (uint32_t i = 0; i < block.codes[level]; i += kGroup, codes += kGroupBytes) {
      const __m512i code = codes_of(codes);
      __m512i offset = _mm512_permutexvar_epi8(code, offsets);
      if (level < kLevels - 1) {
        const __mmask64 escaped = escapes_in(code);
        offset = _mm512_mask_expand_epi8(offset, escaped, _mm512_loadu_si512(escapes));
        escapes += _mm_popcnt_u64(escaped);
      }
      _mm512_store_si512(to + i, offset);
    }
    if (level < kLevels - 1 && escapes != deeper + block.codes[level + 1]) return nullptr;
    deeper = to;
  }
  for (uint32_t i = 0; i < block.exceptions; ++i) {
    uint16_t position;
    memcpy(&position, block.positions + 2 * size_t{i}, sizeof position);
    if (position >= block.codes[1]) return nullptr;
    to[position] = block.offsets[i];
  }
  return to;
}

// The bases of a tile in the order of a group's weights.
inline __m512i bases_of(const uint8_t* bases) {
  alignas(64) uint8_t ordered[kGroup];
  for (size_t p = 0; p < kGroup; ++p) ordered[p] = bases[16 * (p % 16 / 8) + 4 * (p / 16) + p % 8 / 2];
  return _mm512_load_si512(ordered);
}

ZIPMOE_INLINE void merge(__m512i exponents, __m512i rotated_sm, __m512i* low, __m512i* high) {
  const __m512i first = _mm512_unpacklo_epi8(rotated_sm, exponents);
  const __m512i second = _mm512_unpackhi_epi8(rotated_sm, exponents);
  *low = _mm512_shrdi_epi16(first, first, 1);
  *high = _mm512_shrdi_epi16(second, second, 1);
}

// The groups of a coded block, in order. Reads at most one code and one SM byte a weight.
class Coded {
 public:
  Coded(const Tile& tile, const Block& block, const uint8_t* escapes)
      : codes_(block.levels[0]), escapes_(escapes), weights_(block.weights), table_(level_table(tile.table, 0)),
        bases_(bases_of(tile.bases)) {}

  ZIPMOE_INLINE void next(__m512i* low, __m512i* high) {
    const __m512i code = codes_of(codes_);
    const __mmask64 escaped = escapes_in(code);
    const __m512i found = _mm512_permutexvar_epi8(code, table_);
    const __m512i offsets = _mm512_mask_expand_epi8(found, escaped, _mm512_loadu_si512(escapes_));
    merge(_mm512_add_epi8(offsets, bases_), _mm512_loadu_si512(weights_), low, high);
    codes_ += kGroupBytes;
    escapes_ += _mm_popcnt_u64(escaped);
    weights_ += kGroup;
  }

  // Behind the last escape that has been used.
  const uint8_t* escapes() const { return escapes_; }

 private:
  const uint8_t *codes_, *escapes_, *weights_;
  __m512i table_, bases_;
};

// Groups that are bf16 already: a raw block, or a panel of decoded groups.
class Plain {
 public:
  explicit Plain(const void* weights) : weights_(static_cast<const uint8_t*>(weights)) {}

  ZIPMOE_INLINE void next(__m512i* low, __m512i* high) {
    *low = _mm512_loadu_si512(weights_);
    *high = _mm512_loadu_si512(weights_ + 64);
    weights_ += 128;
  }

 private:
  const uint8_t* weights_;
};

}  // namespace
}  // namespace zipmoe::tile

#endif
