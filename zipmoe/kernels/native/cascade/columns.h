// Recovers several rows of a block together, 64 columns of all rows at a time, for consumers that need the same columns
// of several rows in the first-level cache. Blocks of whole groups only: cols is a multiple of 64.
//
//   Columns<isa::Avx512, 16> columns(block, &scratch);
//   for (...every 16 rows of the block, in order...) {
//     columns.begin(count, sm of the first of them);
//     for (...every 64 columns, in order...) {
//       for (i < 16) columns.group(i, bf16[i]);
//       columns.patch(bf16);
//     }
//   }
//   if (!columns.done()) ...the chunk is corrupt, and the written weights are undefined...
//
// The start of a row's escapes is known when the escapes of the earlier rows have been counted. In addition to the list
// of cascade/rows.h, an Isa offers escapes_in(codes, groups): the number of codes that are 3.
#ifndef ZIPMOE_KERNELS_CASCADE_COLUMNS_H
#define ZIPMOE_KERNELS_CASCADE_COLUMNS_H

#include "cascade/rows.h"

namespace zipmoe::cascade {

template <class Isa, size_t kRows>
class Columns {
 public:
  Columns(const Block& block, Scratch* scratch) : block_(block), rows_(block, scratch) {
    escapes_ = rows_.escapes();
  }

  // Starts the next `count` rows, at most kRows. The last of these rows stands for missing rows.
  void begin(size_t count, const uint8_t* sm) {
    const size_t groups = block_.cols / kGroup;
    const bool raw = block_.kind == Kind::kRaw;
    column_ = 0;
    next_exception_ = kNone;
    for (size_t i = 0; i < kRows; ++i) {
      if (i >= count) {
        row_[i] = row_[count - 1];
        continue;
      }
      Row& row = row_[i];
      row.sm = sm + i * block_.cols;
      row.codes = raw ? block_.tables + size_t{next_row_} * block_.cols
                      : block_.levels[0] + size_t{next_row_} * groups * kGroupBytes;
      row.exception = exception_;
      if (!raw) {
        row.escapes = escapes_;
        escapes_ += Isa::escapes_in(row.codes, groups);
        alignas(16) uint8_t table[kRanks];
        row_table(block_, next_row_, table);
        row.table = Isa::table(table);
        skip_exceptions();
        if (row.exception != exception_) {
          next_exception_ = std::min(next_exception_, position(row.exception) % block_.stride);
        }
      }
      row.exceptions_end = exception_;
      ++next_row_;
    }
  }

  // Recovers the next 64 weights of row i, without exceptions.
  inline __attribute__((always_inline)) void group(size_t i, uint8_t* bf16) {
    Row& row = row_[i];
    if (__builtin_expect(block_.kind == Kind::kRaw, false)) {
      Isa::kMerge(row.sm, row.codes, bf16, kGroup);
      row.codes += kGroup;
    } else {
      Isa::weights(Isa::ranks(row.codes, 0, row.escapes), row.table, row.sm, bf16);
      row.codes += kGroupBytes;
    }
    row.sm += kGroup;
  }

  // Writes the exceptions of the last 64 columns. Call after `group` for all rows.
  inline __attribute__((always_inline)) void patch(uint8_t (*bf16)[2 * kGroup]) {
    column_ += kGroup;
    if (next_exception_ < column_) put_exceptions(bf16);
  }

  // Whether the block was sound. Call after all rows have been recovered.
  bool done() const {
    return rows_.expanded() && escapes_ == rows_.escapes_end() && exception_ == block_.exceptions;
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Row {
    typename Isa::Table table;
    const uint8_t* codes;  // of a raw block the exponents
    const uint8_t* escapes;
    const uint8_t* sm;
    uint32_t exception, exceptions_end;
  };

  const Block& block_;
  const Rows<Isa> rows_;  // has expanded the escapes
  Row row_[kRows];
  const uint8_t* escapes_;
  uint32_t next_row_ = 0;
  uint32_t exception_ = 0;
  uint32_t column_ = 0;
  uint32_t next_exception_ = 0;  // the first column that has one and is not decoded yet

  uint32_t position(uint32_t exception) const {
    uint16_t position;
    memcpy(&position, block_.positions + 2 * size_t{exception}, sizeof position);
    return position;
  }

  // Skips the exceptions of the next row. An exception that is out of order is not skipped, nor are later ones, and
  // `done` reports the block as corrupt.
  void skip_exceptions() {
    uint32_t begin = next_row_ * block_.stride;
    const uint32_t end = begin + block_.stride;
    for (; exception_ < block_.exceptions; ++exception_) {
      const uint32_t at = position(exception_);
      if (at < begin || at >= end) return;
      begin = at + 1;
    }
  }

  __attribute__((noinline)) void put_exceptions(uint8_t (*bf16)[2 * kGroup]) {
    next_exception_ = kNone;
    for (size_t i = 0; i < kRows; ++i) {
      Row& row = row_[i];
      for (; row.exception < row.exceptions_end; ++row.exception) {
        const uint32_t column = position(row.exception) % block_.stride;
        if (column >= column_) {
          next_exception_ = std::min(next_exception_, column);
          break;
        }
        uint8_t* weight = bf16[i] + 2 * (column % kGroup);
        const uint8_t exponent = block_.exponents[row.exception];
        weight[0] = static_cast<uint8_t>((exponent << 7) | (weight[0] & 0x7f));
        weight[1] = static_cast<uint8_t>((weight[1] & 0x80) | (exponent >> 1));
      }
    }
  }
};

}  // namespace zipmoe::cascade

#endif
