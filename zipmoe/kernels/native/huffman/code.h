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

// Finds the shortest code for given counts; at least two counts must not be 0. Ties are broken by symbol, so the result
// is the same on every machine.
Lengths shortest_lengths(const uint32_t counts[kSymbols]);

// Whether the lengths are those of a complete code: every bit pattern has exactly one meaning.
bool is_complete(const Lengths& lengths);

// Codewords with the first bit lowest, as in streams. `symbols` lists the symbols with a codeword, shortest first.
struct Code {
  uint16_t bits[kSymbols];
  uint8_t symbols[kSymbols];
  int count;
};

Code canonical_code(const Lengths& lengths);

}  // namespace zipmoe::huffman

#endif
