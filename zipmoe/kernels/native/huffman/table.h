// The look-up table: maps the next 11 bits of a stream to up to 6 exponents.
#ifndef ZIPMOE_KERNELS_HUFFMAN_TABLE_H
#define ZIPMOE_KERNELS_HUFFMAN_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "huffman/code.h"

namespace zipmoe::huffman {

constexpr int kMostAtOnce = 6;

// An entry has eight bytes and is stored to the output unchanged. Streams go backwards through the exponents, so the
// first exponent in stream order is in the highest byte. The store of the next entry overwrites the two lowest bytes.
//
//   byte 0  bits of all codewords   byte 1  number of exponents   bytes 7, 6, ... 2  the exponents in stream order
struct Table {
  uint64_t entries[1 << kLongest];
  Lengths lengths;  // for the last exponents of a stream, which are decoded one by one
};

inline unsigned bits_of(uint64_t entry) { return entry & 63; }
inline size_t count_of(uint64_t entry) { return entry >> 8 & 0xff; }
inline uint8_t first_of(uint64_t entry) { return static_cast<uint8_t>(entry >> 56); }

// Builds the table. `lengths` must be a complete code of at least two symbols.
void make_table(const Lengths& lengths, Table* table);

}  // namespace zipmoe::huffman

#endif
