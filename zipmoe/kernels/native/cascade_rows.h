// Decodes a block row by row, on one instruction set. A fused consumer merges a row and uses it while it is in L1.
//
//   Rows<isa::Avx2> rows(block, &scratch);
//   for (...each row of the block...) rows.weights(sm, bf16);
//   if (!rows.done()) ...the chunk is corrupt, and so is what was written...
//
// An Isa offers, each for 64 weights at once and inline:
//   Ranks ranks(codes, first, escapes)  first + code; where the code is 3, the next of `escapes`, which it advances.
//                                       Reads 16 bytes of codes, and up to 64 of escapes.
//   void store(ranks, out)              as 64 bytes.
//   Table table(bytes)                  16 exponents, in the form that the two below want.
//   void exponents(ranks, table, e)     64 exponents.
//   void weights(ranks, table, sm, bf16)  64 weights, from 64 sm bytes.
//   kMerge                              the plane kernel, for raw blocks.
#ifndef ZIPMOE_KERNELS_CASCADE_ROWS_H
#define ZIPMOE_KERNELS_CASCADE_ROWS_H

#include <string.h>

#include "cascade_block.h"

namespace zipmoe::cascade {

template <class Isa>
class Rows {
 public:
  // Expands levels 5 to 2 into the scratch memory. `block` is what open_block passed, and outlives this.
  Rows(const Block& block, Scratch* scratch) : block_(block) {
    if (block.kind == Kind::kRaw) return;
    codes_ = block.levels[0];
    escapes_ = scratch->even;
    escapes_end_ = scratch->even + block.codes[1];
    const uint8_t* escapes = nullptr;
    for (int level = kLevels - 1; level > 0; --level) {
      uint8_t* ranks = level % 2 ? scratch->even : scratch->odd;
      const uint8_t* end = level == kLevels - 1 ? nullptr : escapes + block.codes[level + 1];
      escapes = expand(level, escapes, ranks);
      sound_ = sound_ && escapes == end;
      escapes = ranks;
    }
  }

  // The next row's exponents. Writes `stride` bytes, those of the padding included.
  void exponents(uint8_t* e) {
    const uint32_t count = next_weights();
    if (block_.kind == Kind::kRaw) {
      memcpy(e, raw_row(), count);
    } else {
      const typename Isa::Table table = next_table();
      // Members would be read again after every write through a byte pointer.
      const uint8_t *codes = codes_, *escapes = escapes_;
      for (uint32_t i = 0; i < count; i += kGroup, codes += kGroupBytes) {
        Isa::exponents(Isa::ranks(codes, 0, escapes), table, e + i);
      }
      codes_ = codes;
      escapes_ = escapes;
      each_exception(count, [e](uint32_t col, uint8_t exponent) { e[col] = exponent; });
    }
    ++row_;
  }

  // The next row's weights: reads one sm byte for each and writes two bytes of bf16, no more.
  void weights(const uint8_t* sm, uint8_t* bf16) {
    const uint32_t count = next_weights();
    if (block_.kind == Kind::kRaw) {
      Isa::kMerge(sm, raw_row(), bf16, count);
    } else {
      const typename Isa::Table table = next_table();
      const uint8_t *codes = codes_, *escapes = escapes_;
      uint32_t i = 0;
      for (; i + kGroup <= count; i += kGroup, codes += kGroupBytes) {
        Isa::weights(Isa::ranks(codes, 0, escapes), table, sm + i, bf16 + 2 * i);
      }
      if (i < count) {
        uint8_t padded_sm[kGroup] = {}, padded_bf16[2 * kGroup];
        memcpy(padded_sm, sm + i, count - i);
        Isa::weights(Isa::ranks(codes, 0, escapes), table, padded_sm, padded_bf16);
        memcpy(bf16 + 2 * i, padded_bf16, 2 * (count - i));
        codes += kGroupBytes;
      }
      codes_ = codes;
      escapes_ = escapes;
      each_exception(count, [bf16](uint32_t col, uint8_t exponent) {
        uint8_t* weight = bf16 + 2 * size_t{col};
        weight[0] = static_cast<uint8_t>((exponent << 7) | (weight[0] & 0x7f));
        weight[1] = static_cast<uint8_t>((weight[1] & 0x80) | (exponent >> 1));
      });
    }
    ++row_;
  }

  // Once all rows have been decoded: whether the block was sound.
  bool done() const { return sound_ && escapes_ == escapes_end_ && exception_ == block_.exceptions; }

 private:
  const Block& block_;
  const uint8_t* codes_ = nullptr;
  const uint8_t* escapes_ = nullptr;
  const uint8_t* escapes_end_ = nullptr;
  uint32_t row_ = 0;
  uint32_t exception_ = 0;  // the next
  int32_t last_position_ = -1;
  bool sound_ = true;

  uint32_t next_weights() const { return row_ + 1 == block_.rows ? block_.last_row_weights : block_.cols; }

  const uint8_t* raw_row() const { return block_.tables + size_t{row_} * block_.cols; }

  typename Isa::Table next_table() const {
    alignas(16) uint8_t table[kRanks];
    row_table(block_, row_, table);
    return Isa::table(table);
  }

  // Ranks of one level (numbered from 0 here); returns where its escapes ended.
  const uint8_t* expand(int level, const uint8_t* escapes, uint8_t* out) const {
    const uint8_t first = static_cast<uint8_t>(3 * level);
    const uint8_t* codes = block_.levels[level];
    const uint32_t count = block_.codes[level];
    static constexpr uint8_t kLastRank[kGroup] = {15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
                                                  15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
                                                  15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
                                                  15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};
    const bool deepest = level == kLevels - 1;
    uint32_t i = 0;
    for (; i + kGroup <= count; i += kGroup, codes += kGroupBytes) {
      if (deepest) escapes = kLastRank;
      Isa::store(Isa::ranks(codes, first, escapes), out + i);
    }
    if (i < count) {
      uint8_t group[kGroupBytes];
      regroup(codes, count - i, group);
      if (deepest) escapes = kLastRank;
      Isa::store(Isa::ranks(group, first, escapes), out + i);
    }
    return deepest ? nullptr : escapes;
  }

  // Turns the r codes of a last, partial group into a whole group, code 0 behind them.
  static void regroup(const uint8_t* bytes, uint32_t r, uint8_t* group) {
    const uint32_t q = (r + 3) / 4;
    uint8_t code[2 * kGroup];
    for (uint32_t pair = 0; pair < 4; ++pair) {
      // Fixed lengths, each overwriting what the one before wrote too much: no loop depends on r.
      for (uint32_t i = 0; i < 16; ++i) code[pair * q + i] = bytes[i] >> 2 * pair & 3;
    }
    memset(code + r, 0, kGroup);
    for (uint32_t i = 0; i < 16; ++i) {
      group[i] = static_cast<uint8_t>(code[i] | code[i + 16] << 2 | code[i + 32] << 4 | code[i + 48] << 6);
    }
  }

  // Calls patch(column, exponent) for the exceptions of the row that has just been decoded.
  template <class Patch>
  void each_exception(uint32_t count, Patch patch) {
    const uint32_t begin = row_ * block_.stride;
    for (; exception_ < block_.exceptions; ++exception_) {
      uint16_t position;
      memcpy(&position, block_.positions + 2 * size_t{exception_}, sizeof position);
      if (position >= begin + block_.stride) return;
      const uint32_t col = position - begin;  // larger than any count where the position lies before the row
      sound_ = sound_ && col < count && int32_t{position} > last_position_;
      last_position_ = position;
      if (col < count) patch(col, block_.exponents[exception_]);
    }
  }
};

}  // namespace zipmoe::cascade

#endif
