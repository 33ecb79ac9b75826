// Code lengths and codewords of a canonical, length-limited Huffman code over bytes.
#ifndef ZIPMOE_KERNELS_HUFFMAN_CODE_H
#define ZIPMOE_KERNELS_HUFFMAN_CODE_H

#include <stdint.h>

namespace zipmoe::huffman {

constexpr int kSymbols = 256;
constexpr int kLongest = 11;  // bits of a codeword, and of the index into the decoder's table

// Bits of each symbol's codeword; 0 for a symbol that does not occur.
struct Lengths {
  uint8_t of[kSymbols];
};

// The shortest code for these counts, of which at least two are not 0. Ties are broken by symbol: the result is the
// same everywhere.
Lengths shortest_lengths(const uint32_t counts[kSymbols]);

// Whether a code with these lengths leaves no bit pattern without a meaning, and none with two.
bool is_complete(const Lengths& lengths);

// Codewords with their first bit lowest, as streams hold them; `symbols` are those that have one, shortest first.
struct Code {
  uint16_t bits[kSymbols];
  uint8_t symbols[kSymbols];
  int count;
};

Code canonical_code(const Lengths& lengths);

}  // namespace zipmoe::huffman

#endif
