// The tables of a tile, chosen from a sample of its weights before any weight is coded.
#ifndef ZIPMOE_KERNELS_NIBBLE_TABLES_H
#define ZIPMOE_KERNELS_NIBBLE_TABLES_H

#include "nibble/outline.h"

namespace zipmoe::nibble {

// Chooses the high bytes, without the sign, that have a rank in a row: the commonest of a sample, and the greatest of all.
// `count` is the number of weights, at least 1.
void choose(const uint16_t* row, size_t count, uint8_t* table);

}  // namespace zipmoe::nibble

#endif
