// The decoder's table: what the next 11 bits of a stream mean, up to 6 exponents at once.
#ifndef ZIPMOE_KERNELS_HUFFMAN_TABLE_H
#define ZIPMOE_KERNELS_HUFFMAN_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "huffman/code.h"

namespace zipmoe::huffman {

constexpr int kMostAtOnce = 6;

// One entry is eight bytes, so that it can be stored as it is: streams go backwards through the exponents, the later
// exponent stands higher, and the two lowest bytes fall where the next entry is going to be stored.
//
//   byte 0  bits of all its codewords   byte 1  how many exponents   bytes 7, 6, ... 2  the exponents in stream order
struct Table {
  uint64_t entries[1 << kLongest];
  Lengths lengths;  // for the last exponents of a stream, which are decoded one by one
};

inline unsigned bits_of(uint64_t entry) { return entry & 63; }
inline size_t count_of(uint64_t entry) { return entry >> 8 & 0xff; }
inline uint8_t first_of(uint64_t entry) { return static_cast<uint8_t>(entry >> 56); }

// `lengths` have to be complete, of at least two symbols.
void make_table(const Lengths& lengths, Table* table);

}  // namespace zipmoe::huffman

#endif
