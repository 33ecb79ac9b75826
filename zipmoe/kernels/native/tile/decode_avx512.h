// Decodes the groups of a block to operands of vdpbf16ps, with AVX-512. Only for files that are compiled with
// -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mpopcnt.
//
// An operand has 16 outputs, one in each lane, and two inputs, the even one in the lower half. A group decodes to two
// operands, `low` with outputs 0 to 15 and `high` with outputs 16 to 31. Weight p of a group is input p / 2 % 2 of
// output p / 4 + 16 * (p % 2): an even place and the odd place behind it are the same half of a lane of both operands.
//
// On Intel's cores all permutations, and most of vdpbf16ps, run on one of two ports. Everything else here is therefore
// made of shifts and logic, which run on the other port: neither the codes nor the operands are shuffled.
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
  const __m512i shifts = _mm512_set_epi64(6, 6, 4, 4, 2, 2, 0, 0);
  const __m128i group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return _mm512_srlv_epi64(_mm512_broadcast_i32x4(group), shifts);
}

constexpr uint8_t kEscape = 0x80;  // what code 0 is looked up as; no offset of a table has this bit

// The table of a level in all lanes: offsets of codes 1 to 3, and what code 0 stands for.
inline __m512i level_table(const uint8_t* table, int level) {
  const uint8_t zero = level < kLevels - 1 ? kEscape : table[kRanks - 1];
  const uint8_t* ranks = table + 3 * level;
  const uint32_t offsets = zero | uint32_t{ranks[0]} << 8 | uint32_t{ranks[1]} << 16 | uint32_t{ranks[2]} << 24;
  return _mm512_set1_epi32(static_cast<int>(offsets));
}

// The offsets of 64 codes. Takes those of the escapes from `escapes` and advances it; reads 64 bytes there.
ZIPMOE_INLINE __m512i offsets_of(const uint8_t* codes, __m512i table, const uint8_t** escapes) {
  const __m512i found = _mm512_permutexvar_epi8(codes_of(codes), table);
  const __mmask64 escaped = _mm512_movepi8_mask(found);
  const __m512i offsets = _mm512_mask_expand_epi8(found, escaped, _mm512_loadu_si512(*escapes));
  *escapes += _mm_popcnt_u64(escaped);
  return offsets;
}

// Expands levels 5 to 2. Returns the offsets of level 1's escapes, or null if the levels do not fit together.
inline const uint8_t* expand(const Block& block, const uint8_t* table, Escapes* memory) {
  const uint8_t* deeper = memory->even;  // the last level has no escapes
  uint8_t* to = memory->odd;
  for (int level = kLevels - 1; level > 0; --level) {
    const __m512i offsets = level_table(table, level);
    const uint8_t *codes = block.levels[level], *escapes = deeper;
    to = level % 2 ? memory->odd : memory->even;
    for (uint32_t i = 0; i < block.codes[level]; i += kGroup, codes += kGroupBytes) {
      _mm512_store_si512(to + i, offsets_of(codes, offsets, &escapes));
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
  for (size_t p = 0; p < kGroup; ++p) ordered[p] = bases[p / 4 + 16 * (p % 2)];
  return _mm512_load_si512(ordered);
}

// Joins exponents and SM bytes, each mantissa << 1 | sign. The SM bytes of the two operands have changed places, so
// that either operand is a rotation of 16 bits.
ZIPMOE_INLINE void merge(__m512i exponents, __m512i sm, __m512i* low, __m512i* high) {
  constexpr __mmask64 kEven = 0x5555555555555555;
  const __m512i first = _mm512_mask_blend_epi8(kEven, sm, exponents);
  const __m512i second = _mm512_mask_blend_epi8(kEven, exponents, sm);
  *low = _mm512_shldi_epi16(first, first, 7);
  *high = _mm512_shrdi_epi16(second, second, 1);
}

// The groups of a coded block, in order. Without bases, all bases of the tile are 0, as they are where rows have about
// the same scale.
template <bool kHasBases>
class Coded {
 public:
  Coded(const Tile& tile, const Block& block, const uint8_t* escapes)
      : codes_(block.levels[0]), escapes_(escapes), weights_(block.weights), table_(level_table(tile.table, 0)),
        bases_(bases_of(tile.bases)) {}

  ZIPMOE_INLINE void next(__m512i* low, __m512i* high) {
    __m512i exponents = offsets_of(codes_, table_, &escapes_);
    if constexpr (kHasBases) exponents = _mm512_add_epi8(exponents, bases_);
    merge(exponents, _mm512_loadu_si512(weights_), low, high);
    codes_ += kGroupBytes;
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
