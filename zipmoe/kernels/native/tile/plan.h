// The bases and the table of a tile, chosen from a sample of its exponents before any weight is coded.
#ifndef ZIPMOE_KERNELS_TILE_PLAN_H
#define ZIPMOE_KERNELS_TILE_PLAN_H

#include "tile/outline.h"

namespace zipmoe::tile {

constexpr uint8_t kException = 0x80;

struct Plan {
  uint8_t bases[kTileOutputs];
  uint8_t table[kRanks];
  alignas(64) uint8_t ranks[kMostOffset + 1];  // of each offset that a table can have; kException for those without
};

// Chooses between a base for each row, which suits rows of different scales, and one base for all rows, which suits
// exponents that are frequent in every row, such as that of zero. `e` has a pointer to the k exponents of each of the
// first `rows` rows. Rows that are missing get a base with which exponent 0 has rank 0.
void choose(const uint8_t* const* e, size_t rows, size_t k, Plan* plan);

}  // namespace zipmoe::tile

#endif
