#ifndef ZIPMOE_TESTS_FUZZ_TILES_H
#define ZIPMOE_TESTS_FUZZ_TILES_H

#include "input.h"

namespace zipmoe::fuzz {

// Input: u8 rows of inputs, with bit 7 for two threads, u8 rows of weights, u16 inputs, each modulo the most there may be;
// then a matrix in tile form. True where it is accepted.
bool compute_tiles(Layout layout, Input input);

// Input: u8 rows of weights, u16 inputs, as above; then bf16 weights, as many as there are. True where there is tile form.
bool make_tiles(Layout layout, Input input);

}  // namespace zipmoe::fuzz

#endif
