// Recovers a block row by row, on one instruction set. A fused consumer uses a row while the row is in the first-level
// cache.
//
//   Rows<isa::Avx2> rows(block, &scratch);
//   for (...each row of the block...) rows.weights(sm, bf16);
//   if (!rows.done()) ...the chunk is corrupt, and the written weights are undefined...
//
// An Isa offers inline functions, each for 64 weights at once:
//   Ranks ranks(codes, first, escapes)  first + code; for code 3 the next byte of `escapes`. Advances `escapes`.
//                                       Reads 16 bytes of codes, and up to 64 bytes of escapes.
//   void store(ranks, out)              stores ranks as 64 bytes.
//   Table table(bytes)                  16 exponents, in the form for the next two functions.
//   void exponents(ranks, table, e)     writes 64 exponents.
//   void weights<kStream>(ranks, table, sm, bf16)  writes 64 weights, from 64 sm bytes; with kStream past the caches.
//   void stream_group(from, bf16)       copies 64 weights past the caches.
//   kStreams, void finish_stream()      whether the Isa can write past the caches; makes such writes visible to
//                                       other threads.
//   kMerge                              the plane kernel, for raw blocks.
#ifndef ZIPMOE_KERNELS_CASCADE_ROWS_H
#define ZIPMOE_KERNELS_CASCADE_ROWS_H

#include <string.h>

#include <algorithm>

#include "cascade/block.h"

namespace zipmoe::cascade {

template <class Isa>
class Rows {
 public:
  // Expands levels 5 to 2 into the scratch memory. `block` is a block that open_block has accepted; it must outlive
  // this object.
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

  // Writes the next row's exponents: `stride` bytes with the padding.
  void exponents(uint8_t* e) {
    const uint32_t count = next_weights();
    if (block_.kind == Kind::kRaw) {
      memcpy(e, raw_row(), count);
    } else {
      const typename Isa::Table table = next_table();
      // Local copies: the compiler would read members again after every write through a byte pointer.
      const uint8_t *codes = codes_, *escapes = escapes_;
      for (uint32_t i = 0; i < count; i += kGroup, codes += kGroupBytes) {
        Isa::exponents(Isa::ranks(codes, 0, escapes), table, e + i);
      }
      codes_ = codes;
      escapes_ = escapes;
      each_exception(0, count, [e](uint32_t col, uint8_t exponent) { e[col] = exponent; });
    }
    ++row_;
  }

  // Writes the next row's weights: reads exactly one sm byte and writes exactly two bytes of bf16 per weight. With
  // kStream writes past the caches; bf16 must then be aligned to 64.
  template <bool kStream = false>
  void weights(const uint8_t* sm, uint8_t* bf16) {
    const uint32_t count = next_weights();
    if (block_.kind == Kind::kRaw) {
      Isa::kMerge(sm, raw_row(), bf16, count);
    } else {
      const typename Isa::Table table = next_table();
      each_group(
          count,
          [&](uint32_t i, const uint8_t* codes, const uint8_t*& escapes) __attribute__((always_inline)) {
            Isa::template weights<kStream>(Isa::ranks(codes, 0, escapes), table, sm + i, bf16 + 2 * i);
          },
          [&](uint32_t begin, uint32_t end) {
            alignas(64) uint8_t group[2 * kGroup];
            odd_group(begin, end, table, sm, group);
            // A plain write among writes past the caches would delay them until its line has come from memory.
            if constexpr (kStream) {
              if (end - begin == kGroup) return Isa::stream_group(group, bf16 + 2 * begin);
            }
            memcpy(bf16 + 2 * begin, group, 2 * (end - begin));
          });
    }
    ++row_;
  }

  // Passes the next row's weights to a consumer, 64 at a time; rows must have whole groups. Calls plain(column,
  // Isa::Halves) for weights in registers, or stored(column, bf16) for weights that have to be assembled in memory.
  template <class Plain, class Stored>
  inline __attribute__((always_inline)) void halves(const uint8_t* sm, Plain plain, Stored stored) {
    const uint32_t count = next_weights();
    alignas(64) uint8_t group[2 * kGroup];
    if (block_.kind == Kind::kRaw) {
      for (uint32_t i = 0; i < count; i += kGroup) {
        Isa::kMerge(sm + i, raw_row() + i, group, kGroup);
        stored(i, group);
      }
    } else {
      const typename Isa::Table table = next_table();
      each_group(
          count,
          [&](uint32_t i, const uint8_t* codes, const uint8_t*& escapes) __attribute__((always_inline)) {
            plain(i, Isa::halves(Isa::ranks(codes, 0, escapes), table, sm + i));
          },
          [&](uint32_t begin, uint32_t end) {
            odd_group(begin, end, table, sm, group);
            stored(begin, group);
          });
    }
    ++row_;
  }

  // The ranks of level 1's escapes, for consumers that recover level 1 by other code; and whether levels 2 to 5 are
  // sound.
  const uint8_t* escapes() const { return escapes_; }
  const uint8_t* escapes_end() const { return escapes_end_; }
  bool expanded() const { return sound_; }

  // Whether the block was sound. Call after all rows have been recovered.
  bool done() const { return sound_ && escapes_ == escapes_end_ && exception_ == block_.exceptions; }

 private:
  const Block& block_;
  const uint8_t* codes_ = nullptr;
  const uint8_t* escapes_ = nullptr;
  const uint8_t* escapes_end_ = nullptr;
  uint32_t row_ = 0;
  uint32_t exception_ = 0;  // the next
  bool sound_ = true;

  uint32_t next_weights() const { return row_ + 1 == block_.rows ? block_.last_row_weights : block_.cols; }

  const uint8_t* raw_row() const { return block_.tables + size_t{row_} * block_.cols; }

  typename Isa::Table next_table() const {
    alignas(16) uint8_t table[kRanks];
    row_table(block_, row_, table);
    return Isa::table(table);
  }

  // Expands the ranks of a level (numbered from 0 here). Returns the end of the escapes that the level has used.
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

  // Turns the r codes of a last, partial group into a whole group, filled up with code 0.
  static void regroup(const uint8_t* bytes, uint32_t r, uint8_t* group) {
    const uint32_t q = (r + 3) / 4;
    uint8_t code[2 * kGroup];
    for (uint32_t pair = 0; pair < 4; ++pair) {
      // Each copy has a fixed length and overwrites the surplus of the copy before, so that no loop depends on r.
      for (uint32_t i = 0; i < 16; ++i) code[pair * q + i] = bytes[i] >> 2 * pair & 3;
    }
    memset(code + r, 0, kGroup);
    for (uint32_t i = 0; i < 16; ++i) {
      group[i] = static_cast<uint8_t>(code[i] | code[i + 16] << 2 | code[i + 32] << 4 | code[i + 48] << 6);
    }
  }

  // Calls plain(column, codes, escapes), which advances the escapes, for every group of the row; for a group with
  // exceptions and for a last, partial group calls odd(begin, end) instead.
  template <class Plain, class Odd>
  inline __attribute__((always_inline)) void each_group(uint32_t count, Plain plain, Odd odd) {
    const uint32_t whole = count / kGroup * kGroup;
    for (uint32_t i = 0; i < count; i += kGroup) {
      const uint32_t plain_end = std::min(whole, static_cast<uint32_t>(next_exception(i, count) / kGroup * kGroup));
      const uint8_t *codes = codes_, *escapes = escapes_;
      for (; i < plain_end; i += kGroup, codes += kGroupBytes) plain(i, codes, escapes);
      codes_ = codes;
      escapes_ = escapes;
      if (i < count) odd(i, std::min(i + static_cast<uint32_t>(kGroup), count));
    }
  }

  // Recovers columns [begin, end) of the row; sm bytes beyond are taken as 0.
  __attribute__((noinline)) void odd_group(uint32_t begin, uint32_t end, const typename Isa::Table& table,
                                           const uint8_t* sm, uint8_t* group) {
    alignas(64) uint8_t group_sm[kGroup] = {};
    memcpy(group_sm, sm + begin, end - begin);
    Isa::weights(Isa::ranks(codes_, 0, escapes_), table, group_sm, group);
    codes_ += kGroupBytes;
    each_exception(begin, end, [begin, group](uint32_t col, uint8_t exponent) {
      uint8_t* weight = group + 2 * (col - begin);
      weight[0] = static_cast<uint8_t>((exponent << 7) | (weight[0] & 0x7f));
      weight[1] = static_cast<uint8_t>((weight[1] & 0x80) | (exponent >> 1));
    });
  }

  // Returns the next exception's column, if the column is in [begin, end) of the row; otherwise `end`.
  uint32_t next_exception(uint32_t begin, uint32_t end) const {
    if (exception_ == block_.exceptions) return end;
    uint16_t position;
    memcpy(&position, block_.positions + 2 * size_t{exception_}, sizeof position);
    const uint32_t row_begin = row_ * block_.stride;
    return position >= row_begin + begin && position < row_begin + end ? position - row_begin : end;
  }

  // Calls use(column, exponent) for the exceptions in columns [begin, end) of the row. An exception that is out of
  // order or in the padding is never the next exception of its row. It stays unused, as do later ones, and `done`
  // returns false.
  template <class Use>
  void each_exception(uint32_t begin, uint32_t end, Use use) {
    for (uint32_t col; (col = next_exception(begin, end)) < end; begin = col + 1) {
      use(col, block_.exponents[exception_++]);
    }
  }
};

}  // namespace zipmoe::cascade

#endif
