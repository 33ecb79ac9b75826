// Plans the coding of a plane: code lengths and bases, but no bytes. The twin is zipmoe/codec/huffman_twin.py.
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

// The coding of a plane: rows of `cols` weights with a base each, or no bases (0), and the bits of all codewords.
struct Plan {
  size_t cols;
  Lengths lengths;
  uint64_t bits;
};

// Finds the code, and bases if they save enough. The plane must have at least two different exponents. `bases` has room
// for one byte per row and receives the bases of a plan with rows.
Plan choose(Plane plane, size_t cols, uint8_t* bases);

}  // namespace zipmoe::huffman

#endif
