#ifndef ZIPMOE_TESTS_FUZZ_FUSED_H
#define ZIPMOE_TESTS_FUZZ_FUSED_H

#include "input.h"

namespace zipmoe::fuzz {

// Input: u8 order (bit 0) and threads (bit 1: two), u8 rows of inputs, u8 rows of weights, u16 inputs, each modulo the most
// there may be; then the chunk. True where it is accepted.
bool compute_fused(Layout layout, Input input);

}  // namespace zipmoe::fuzz

#endif
