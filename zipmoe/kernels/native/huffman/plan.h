// What the encoder decides, apart from how it is written. zipmoe/codec/huffman_twin.py says the same.
#ifndef ZIPMOE_KERNELS_HUFFMAN_PLAN_H
#define ZIPMOE_KERNELS_HUFFMAN_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "huffman/code.h"

namespace zipmoe::huffman {

struct Plane {
  const uint8_t* e;
  size_t n;
};

// How a plane is coded: with bases for rows of `cols` weights, or without (0), and what its codewords take.
struct Plan {
  size_t cols;
  Lengths lengths;
  uint64_t bits;
};

// Finds the code, and bases where they are worthwhile. The plane has two different exponents at least; `bases` has room
// for one byte a row and holds the bases of a plan that has rows.
Plan choose(Plane plane, size_t cols, uint8_t* bases);

}  // namespace zipmoe::huffman

#endif
