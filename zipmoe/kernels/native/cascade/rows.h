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
//   void weights<kStream>(ranks, table, sm, bf16)  64 weights, from 64 sm bytes; with kStream past the caches.
//   void stream_group(from, bf16)       copies 64 weights past the caches.
//   kStreams, void finish_stream()      whether it can do that, and what makes it visible to other threads.
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
      each_exception(0, count, [e](uint32_t col, uint8_t exponent) { e[col] = exponent; });
    }
    ++row_;
  }

  // The next row's weights: reads one sm byte for each and writes two bytes of bf16, no more. With kStream past the
  // caches, for which bf16 has to be a multiple of 64.
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
            // A plain write amid those past the caches would hold them up until its line has come from memory.
            if constexpr (kStream) {
              if (end - begin == kGroup) return Isa::stream_group(group, bf16 + 2 * begin);
            }
            memcpy(bf16 + 2 * begin, group, 2 * (end - begin));
          });
    }
    ++row_;
  }

  // The next row's weights for who uses them at once, row by row of whole groups: plain(column, Isa::Halves) for 64 of
  // them, or stored(column, bf16) where they have to be put together in memory.
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

  // The ranks of level 1's escapes, for who decodes level 1 otherwise, and whether the levels below it were sound.
  const uint8_t* escapes() const { return escapes_; }
  const uint8_t* escapes_end() const { return escapes_end_; }
  bool expanded() const { return sound_; }

  // Once all rows have been decoded: whether the block was sound.
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

  // Calls plain(column, codes, escapes) for every group of the row, which advances the escapes, and odd(begin, end) where
  // one has exceptions or is the row's last, partial one.
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

  // Columns [begin, end) of the row, and zeros up to 64 weights.
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

  // The next exception's column, if it lies in columns [begin, end) of the row; otherwise end.
  uint32_t next_exception(uint32_t begin, uint32_t end) const {
    if (exception_ == block_.exceptions) return end;
    uint16_t position;
    memcpy(&position, block_.positions + 2 * size_t{exception_}, sizeof position);
    const uint32_t row_begin = row_ * block_.stride;
    return position >= row_begin + begin && position < row_begin + end ? position - row_begin : end;
  }

  // Calls use(column, exponent) for the exceptions in columns [begin, end) of the row. One that is out of order or in
  // the padding is never its row's next: it stays, as do those behind it, and `done` notices.
  template <class Use>
  void each_exception(uint32_t begin, uint32_t end, Use use) {
    for (uint32_t col; (col = next_exception(begin, end)) < end; begin = col + 1) {
      use(col, block_.exponents[exception_++]);
    }
  }
};

}  // namespace zipmoe::cascade

#endif
