// Yields the rows of a matrix in order, as exponents and SM bytes, to the encoder of tile form.
#ifndef ZIPMOE_KERNELS_TILE_ROWS_H
#define ZIPMOE_KERNELS_TILE_ROWS_H

#include <optional>

#include "cascade/cascade.h"
#include "cascade/isa/avx512.h"
#include "cascade/rows.h"
#include "planes/planes.h"
#include "pool/thread_memory.h"
#include "tile/tile.h"

namespace zipmoe::tile {
namespace {

// Rows of bf16 weights.
class Bf16Rows {
 public:
  Bf16Rows(const uint16_t* weight, size_t k) : next_(weight), k_(k) {}

  // Writes the next row's exponents, and SM bytes to `sm`, where they are then found.
  Result next(uint8_t* e, uint8_t* sm, const uint8_t** found) {
    split_planes_avx2(reinterpret_cast<const uint8_t*>(next_), sm, e, k_);
    next_ += k_;
    *found = sm;
    return kDone;
  }
  Result end() const { return kDone; }

 private:
  const uint16_t* next_;
  size_t k_;
};

// Rows of a store's parts. Parts without rows are passed over.
class PartRows {
 public:
  PartRows(const zipmoe_part* parts, size_t count, size_t k, cascade::Scratch* scratch)
      : part_(parts), end_(parts + count), k_(k), scratch_(scratch) {}

  // Writes the next row's exponents, in whole groups of 64; finds its SM bytes in the part.
  Result next(uint8_t* e, uint8_t*, const uint8_t** found) {
    while (part_ != end_ && row_ == part_->rows) {
      const Result result = end_part();
      if (result != kDone) return result;
      ++part_;
      row_ = 0;
    }
    if (part_ == end_) return kCorrupt;
    if (row_ == 0) {
      const Result result = open_part();
      if (result != kDone) return result;
    }
    if (exponents_ != nullptr) {
      memcpy(e, exponents_ + row_ * k_, k_);
    } else {
      if (block_row_ == block_.rows && !next_block()) return kCorrupt;
      rows_->exponents(e);
      ++block_row_;
    }
    *found = part_->sm + row_++ * k_;
    return kDone;
  }

  // Whether all parts have been used up and were sound.
  Result end() {
    for (; part_ != end_; ++part_, row_ = 0) {
      if (row_ != part_->rows) return kCorrupt;
      const Result result = end_part();
      if (result != kDone) return result;
    }
    return kDone;
  }

 private:
  const zipmoe_part *part_, *end_;
  size_t k_;
  cascade::Scratch* scratch_;
  ThreadMemory memory_;
  size_t row_ = 0;  // of the part
  cascade::Chunk chunk_;
  cascade::Block block_;
  uint32_t block_index_, block_row_;
  std::optional<cascade::Rows<cascade::isa::Avx512>> rows_;
  uint8_t* exponents_ = nullptr;  // of the whole part, if its chunk has other rows than the matrix

  Result open_part() {
    const size_t weights = part_->rows * k_;
    exponents_ = nullptr;
    if (!cascade::open_chunk(part_->chunk, part_->chunk_bytes, weights, &chunk_)) return kCorrupt;
    if (chunk_.cols == k_) {
      block_index_ = 0;
      return open_block() ? kDone : kCorrupt;
    }
    // The chunk of a narrow matrix may have longer rows than the matrix. Such a matrix is small.
    exponents_ = static_cast<uint8_t*>(memory_.get(weights + 1));
    if (exponents_ == nullptr) return kNoMemory;
    return cascade::decompress_avx512(part_->chunk, part_->chunk_bytes, exponents_, weights) ? kDone : kCorrupt;
  }

  bool open_block() {
    if (block_index_ >= chunk_.block_count || !cascade::open_block(chunk_, block_index_, &block_)) return false;
    rows_.emplace(block_, scratch_);
    block_row_ = 0;
    return true;
  }

  bool next_block() {
    ++block_index_;
    return rows_->done() && open_block();
  }

  Result end_part() {
    const bool sound = row_ == 0 || exponents_ != nullptr || (block_row_ == block_.rows && rows_->done());
    return sound ? kDone : kCorrupt;
  }
};

}  // namespace
}  // namespace zipmoe::tile

#endif
