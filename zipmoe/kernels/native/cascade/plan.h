// The plan of a block, made before any byte of the block is written: kind, tables, all sizes.
#ifndef ZIPMOE_KERNELS_CASCADE_PLAN_H
#define ZIPMOE_KERNELS_CASCADE_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include <algorithm>

#include "cascade/block.h"

namespace zipmoe::cascade {

// The exponents of one block, row after row.
struct BlockRows {
  const uint8_t* e;
  size_t cols, stride, weights;  // weights of the block
  size_t count() const { return (weights + cols - 1) / cols; }
  size_t weights_of(size_t row) const { return std::min(cols, weights - row * cols); }
};

// Number of codes of each level, and number of exceptions, with given tables.
struct Counts {
  uint32_t codes[kLevels] = {};
  uint32_t exceptions = 0;

  size_t payload_bytes(size_t tables_bytes) const {
    size_t bytes = tables_bytes + 3 * size_t{exceptions};
    for (uint32_t count : codes) bytes += level_bytes(count);
    return bytes;
  }
};

struct Plan {
  Kind kind;
  Counts counts;
  uint8_t table[kRanks];                       // kTable
  uint8_t windows[2 * kMostWeights / kGroup];  // kWindows: two bytes a row

  size_t tables_bytes(size_t rows) const { return kind == Kind::kTable ? kRanks : 2 * rows; }
};

// Chooses the kind that makes the block smallest. On a tie chooses the first kind.
void choose(const BlockRows& rows, Plan* plan);

}  // namespace zipmoe::cascade

#endif
