// Converts rows of weights to tile form, with AVX-512 VBMI2.
#include <algorithm>

#include "linear/pairs_avx512.h"
#include "tile/decode_avx512.h"
#include "tile/plan.h"
#include "tile/rows.h"
#include "tile/tile.h"

namespace zipmoe::tile {
namespace {

thread_local ThreadMemory encoder_memory, scratch_memory;

constexpr size_t kTurnedInputs = 64;
constexpr size_t kTurnedGroups = kTurnedInputs / kGroupInputs;

// The codes of a block, before their sizes are known.
struct Coding {
  alignas(64) uint8_t codes[kLevels][kMostCodes / 4 + kGroupBytes];
  alignas(64) uint8_t ranks[2][kMostCodes + 2 * kGroup];  // of the escapes of one level and the next
  uint16_t positions[kMostCodes];
  uint8_t offsets[kMostCodes];
  uint32_t count[kLevels];
  uint32_t exceptions;

  size_t nbytes(size_t groups) const {
    size_t bytes = round_up(kBlockHeaderBytes + 3 * size_t{exceptions}, kGroupBytes);
    for (uint32_t codes_of_level : count) bytes += level_bytes(codes_of_level);
    return round_up(bytes, kLine) + groups * kGroup;
  }
};

// Exponents and SM bytes of the rows of a tile. Missing rows are zeros.
struct TileRows {
  const uint8_t* e[kTileOutputs];
  const uint8_t* sm[kTileOutputs];
};

// Turns up to 64 inputs of 32 rows to groups. Inputs at `end` and behind are taken for zero. With `kSwapped`, weights
// of outputs 16 to 31 stand before those of outputs 0 to 15.
template <bool kSwapped>
ZIPMOE_INLINE void turn(const uint8_t* const* rows, size_t at, size_t end, __m512i groups[kTurnedGroups]) {
  const size_t inputs = std::min(end - at, kTurnedInputs);
  const __mmask64 some = inputs == kTurnedInputs ? ~__mmask64{0} : (__mmask64{1} << inputs) - 1;
  __m512i half[2][16];  // of every sixteen inputs the first and the last eight, of rows i and i + 16 in turns
  for (size_t i = 0; i < 16; ++i) {
    const __m512i even = _mm512_maskz_loadu_epi8(some, rows[i + 16 * kSwapped] + at);
    const __m512i odd = _mm512_maskz_loadu_epi8(some, rows[i + 16 * !kSwapped] + at);
    half[0][i] = _mm512_unpacklo_epi8(even, odd);
    half[1][i] = _mm512_unpackhi_epi8(even, odd);
  }
  for (size_t h = 0; h < 2; ++h) {
    linear::turn(half[h]);
    for (size_t i = 0; i < 16; ++i) groups[i / 4 * 8 + 4 * h + i % 4] = half[h][i];
  }
}

ZIPMOE_INLINE __m512i rotated(__m512i sm) {
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(sm, 7), _mm512_set1_epi8(1));
  return _mm512_or_si512(_mm512_add_epi8(sm, sm), sign);
}

// Packs the codes of a level: ranks first .. first + 2 are codes 1 to 3, others are escapes.
ZIPMOE_INLINE void pack(__m512i ranks, uint8_t first, uint8_t* group) {
  const __m512i shifts = _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004, 0x0004000400040004,
                                          0x0002000200020002, 0x0002000200020002, 0, 0);
  const __m512i above = _mm512_sub_epi8(ranks, _mm512_set1_epi8(static_cast<char>(first - 1)));
  const __mmask64 coded = _mm512_cmple_epu8_mask(above, _mm512_set1_epi8(3));
  const __m512i shifted = _mm512_sllv_epi16(_mm512_maskz_mov_epi8(coded, above), shifts);
  const __m256i half = _mm256_or_si256(_mm512_castsi512_si256(shifted), _mm512_extracti64x4_epi64(shifted, 1));
  const __m128i packed = _mm_or_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(group), packed);
}

class TileEncoder {
 public:
  TileEncoder(const TileRows& rows, const Plan& plan, Coding* coding)
      : rows_(rows), plan_(plan), coding_(*coding), bases_(bases_of(plan.bases)) {}

  // Writes the block of inputs begin .. end - 1 and returns where it ends, or null if that is behind `room_end`.
  uint8_t* block(size_t begin, size_t end, uint8_t* out, const uint8_t* room_end) {
    const size_t groups = (end - begin + kGroupInputs - 1) / kGroupInputs;
    code_first_level(begin, end);
    for (int level = 1; level < kLevels; ++level) code_level(level);
    const bool is_coded = coding_.nbytes(groups) < raw_bytes(groups);
    if ((is_coded ? coding_.nbytes(groups) : raw_bytes(groups)) > static_cast<size_t>(room_end - out)) return nullptr;
    return is_coded ? put_coded(begin, end, groups, out) : put_raw(begin, end, groups, out);
  }

 private:
  const TileRows& rows_;
  const Plan& plan_;
  Coding& coding_;
  __m512i bases_;

  void code_first_level(size_t begin, size_t end) {
    const __m512i lower = _mm512_load_si512(plan_.ranks), upper = _mm512_load_si512(plan_.ranks + 64);
    const __m512i too_far = _mm512_set1_epi8(static_cast<char>(kException));
    uint32_t escapes = 0, exceptions = 0;
    uint8_t* codes = coding_.codes[0];
    for (size_t at = begin; at < end; at += kTurnedInputs) {
      __m512i exponents[kTurnedGroups];
      turn<false>(rows_.e, at, end, exponents);
      const size_t groups = std::min((end - at + 1) / kGroupInputs, kTurnedGroups);
      for (size_t i = 0; i < groups; ++i, codes += kGroupBytes) {
        const __m512i offsets = _mm512_sub_epi8(exponents[i], bases_);
        __m512i ranks = _mm512_permutex2var_epi8(lower, offsets, upper);
        ranks = _mm512_or_si512(ranks, _mm512_and_si512(offsets, too_far));
        const __mmask64 escaped = _mm512_cmpge_epu8_mask(ranks, _mm512_set1_epi8(3));
        const __mmask64 excepted = _mm512_movepi8_mask(ranks);
        if (__builtin_expect(excepted != 0, false)) {
          exceptions = list(offsets, excepted, escaped, escapes, exceptions);
          ranks = _mm512_mask_mov_epi8(ranks, excepted, _mm512_set1_epi8(3));
        }
        pack(ranks, 0, codes);
        _mm512_storeu_si512(coding_.ranks[1] + escapes, _mm512_maskz_compress_epi8(escaped, ranks));
        escapes += static_cast<uint32_t>(_mm_popcnt_u64(escaped));
      }
    }
    coding_.count[0] = static_cast<uint32_t>((codes - coding_.codes[0]) / kGroupBytes * kGroup);
    coding_.count[1] = escapes;
    coding_.exceptions = exceptions;
  }

  // Lists the exceptions of a group and returns their number so far.
  __attribute__((noinline)) uint32_t list(__m512i offsets, __mmask64 excepted, __mmask64 escaped, uint32_t escapes,
                                          uint32_t exceptions) {
    alignas(64) uint8_t bytes[kGroup];
    _mm512_store_si512(bytes, offsets);
    for (; excepted != 0; excepted &= excepted - 1) {
      const int place = __builtin_ctzll(excepted);
      const __mmask64 before = escaped & ((__mmask64{1} << place) - 1);
      coding_.positions[exceptions] = static_cast<uint16_t>(escapes + __builtin_popcountll(before));
      coding_.offsets[exceptions++] = bytes[place];
    }
    return exceptions;
  }

  // Codes the escapes of the level before; a last, partial group is filled up with the first rank of the level.
  void code_level(int level) {
    uint8_t *ranks = coding_.ranks[level % 2], *escapes = coding_.ranks[(level + 1) % 2], *codes = coding_.codes[level];
    const uint8_t first = static_cast<uint8_t>(3 * level);
    const __m512i deeper = _mm512_set1_epi8(static_cast<char>(first + 3));
    const uint32_t count = coding_.count[level];
    _mm512_storeu_si512(ranks + count, _mm512_set1_epi8(static_cast<char>(first)));
    uint32_t escaped_count = 0;
    for (uint32_t i = 0; i < count; i += kGroup, codes += kGroupBytes) {
      const __m512i group = _mm512_load_si512(ranks + i);
      pack(group, first, codes);
      if (level == kLevels - 1) continue;
      const __mmask64 escaped = _mm512_cmpge_epu8_mask(group, deeper);
      _mm512_storeu_si512(escapes + escaped_count, _mm512_maskz_compress_epi8(escaped, group));
      escaped_count += static_cast<uint32_t>(_mm_popcnt_u64(escaped));
    }
    if (level < kLevels - 1) coding_.count[level + 1] = escaped_count;
  }

  uint8_t* put_coded(size_t begin, size_t end, size_t groups, uint8_t* out) const {
    uint8_t* at = put_header(Kind::kCoded, out);
    const uint32_t exceptions = coding_.exceptions;
    memcpy(at, coding_.positions, 2 * size_t{exceptions});
    memcpy(at + 2 * size_t{exceptions}, coding_.offsets, exceptions);
    at = fill_up(at + 3 * size_t{exceptions}, out, kGroupBytes);
    for (int level = kLevels - 1; level >= 0; --level) {
      const size_t bytes = level_bytes(coding_.count[level]);
      memcpy(at, coding_.codes[level], bytes);
      at += bytes;
    }
    at = fill_up(at, out, kLine);
    for (size_t input = begin; input < end; input += kTurnedInputs) {
      __m512i sm[kTurnedGroups];
      turn<true>(rows_.sm, input, end, sm);
      for (size_t i = 0; i < kTurnedGroups && i < groups; ++i, at += kGroup) _mm512_storeu_si512(at, rotated(sm[i]));
      groups -= std::min(groups, kTurnedGroups);
    }
    return at;
  }

  uint8_t* put_raw(size_t begin, size_t end, size_t groups, uint8_t* out) {
    memset(coding_.count + 1, 0, sizeof coding_.count - sizeof coding_.count[0]);
    coding_.exceptions = 0;
    uint8_t* at = fill_up(put_header(Kind::kRaw, out), out, kLine);
    for (size_t input = begin; input < end; input += kTurnedInputs) {
      __m512i e[kTurnedGroups], sm[kTurnedGroups];
      turn<false>(rows_.e, input, end, e);
      turn<true>(rows_.sm, input, end, sm);
      for (size_t i = 0; i < kTurnedGroups && i < groups; ++i, at += 128) {
        __m512i low, high;
        merge(e[i], rotated(sm[i]), &low, &high);
        _mm512_storeu_si512(at, low);
        _mm512_storeu_si512(at + 64, high);
      }
      groups -= std::min(groups, kTurnedGroups);
    }
    return at;
  }

  uint8_t* put_header(Kind kind, uint8_t* out) const {
    uint16_t header[kBlockHeaderBytes / 2] = {};
    for (int level = 1; level < kLevels; ++level) header[level - 1] = static_cast<uint16_t>(coding_.count[level]);
    header[4] = static_cast<uint16_t>(coding_.exceptions);
    header[5] = static_cast<uint16_t>(kind);
    memcpy(out, header, sizeof header);
    return out + sizeof header;
  }

  // Writes zeros up to the next multiple of `step` from `begin`.
  static uint8_t* fill_up(uint8_t* at, const uint8_t* begin, size_t step) {
    const size_t used = static_cast<size_t>(at - begin), zeros = round_up(used, step) - used;
    memset(at, 0, zeros);
    return at + zeros;
  }
};

void store32(uint8_t* bytes, size_t value) {
  const uint32_t narrow = static_cast<uint32_t>(value);
  memcpy(bytes, &narrow, sizeof narrow);
}

template <class Source>
Result encode(Source& source, const Shape& shape, const Room& room) {
  if (room.nbytes < shape.outline_bytes()) return kNoRoom;
  // A line more than a row, so that rows do not begin a page apart and share a set of the first-level cache.
  const size_t stride = round_up(shape.k, kLine) + kLine;
  uint8_t* planes = static_cast<uint8_t*>(encoder_memory.get(sizeof(Coding) + (2 * kTileOutputs + 1) * stride));
  if (planes == nullptr) return kNoMemory;
  Coding* coding = reinterpret_cast<Coding*>(planes);
  uint8_t *e = planes + sizeof(Coding), *sm = e + kTileOutputs * stride, *zeros = sm + kTileOutputs * stride;
  memset(zeros, 0, stride);
  uint8_t* out = room.bytes;
  const uint8_t* room_end = out + room.nbytes;
  memset(out, 0, shape.outline_bytes());
  store32(out, kMagic);
  store32(out + 4, shape.n);
  store32(out + 8, shape.k);
  uint8_t* at = out + shape.outline_bytes();
  for (size_t index = 0; index < shape.tiles(); ++index) {
    store32(out + kHeaderBytes + index * kPlaceBytes, static_cast<size_t>(at - out) / kLine);
    const size_t count = std::min(shape.n - index * kTileOutputs, kTileOutputs);
    TileRows rows;
    for (size_t row = 0; row < kTileOutputs; ++row) {
      rows.e[row] = row < count ? e + row * stride : zeros;
      rows.sm[row] = zeros;
      if (row >= count) continue;
      const Result result = source.next(e + row * stride, sm + row * stride, &rows.sm[row]);
      if (result != kDone) return result;
    }
    Plan plan;
    choose(rows.e, count, shape.k, &plan);
    if (static_cast<size_t>(room_end - at) < kLine) return kNoRoom;
    memcpy(at, plan.bases, kTileOutputs);
    memcpy(at + kTileOutputs, plan.table, kRanks);
    memset(at + kTileOutputs + kRanks, 0, kLine - kTileOutputs - kRanks);
    at += kLine;
    TileEncoder encoder(rows, plan, coding);
    for (size_t begin = 0; begin < shape.k; begin += kBlockInputs) {
      at = encoder.block(begin, std::min(begin + kBlockInputs, shape.k), at, room_end);
      if (at == nullptr) return kNoRoom;
    }
  }
  *room.used = static_cast<size_t>(at - out);
  store32(out + kHeaderBytes + shape.tiles() * kPlaceBytes, *room.used / kLine);
  return source.end();
}

}  // namespace

Result encode_parts_avx512(const zipmoe_part* parts, size_t count, const Shape& shape, const Room& room) {
  cascade::Scratch* scratch = static_cast<cascade::Scratch*>(scratch_memory.get(sizeof(cascade::Scratch)));
  if (scratch == nullptr) return kNoMemory;
  PartRows rows(parts, count, shape.k, scratch);
  return encode(rows, shape, room);
}

Result encode_bf16_avx512(const uint16_t* weight, const Shape& shape, const Room& room) {
  Bf16Rows rows(weight, shape.k);
  return encode(rows, shape, room);
}

}  // namespace zipmoe::tile
