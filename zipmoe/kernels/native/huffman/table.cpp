#include "huffman/table.h"

#include <string.h>

namespace zipmoe::huffman {
namespace {

// Sequences of codewords, grouped by their total number of bits.
struct Sequences {
  uint16_t bits[1 << kLongest];
  uint64_t entries[1 << kLongest];
  int begin[kLongest + 1];
};

// Appends a codeword to the entry of a sequence.
uint64_t extended(uint64_t entry, uint8_t symbol, int length) {
  return entry + (uint64_t{symbol} << (56 - 8 * count_of(entry))) + (1 << 8) + static_cast<uint64_t>(length);
}

}  // namespace

// The table for w bits is the table for w - 1 bits, twice, except for the entries of sequences of exactly w bits. A bit
// pattern is at most one sequence of codewords, so there are fewer than 2^11 sequences shorter than 11 bits.
void make_table(const Lengths& lengths, Table* table) {
  const Code code = canonical_code(lengths);
  Sequences sequences;
  sequences.bits[0] = 0;
  sequences.entries[0] = 0;
  sequences.begin[0] = 0;
  int end = 1;
  table->lengths = lengths;
  table->entries[0] = 0;
  for (int width = 1; width <= kLongest; ++width) {
    const size_t half = size_t{1} << (width - 1);
    memcpy(table->entries + half, table->entries, half * sizeof table->entries[0]);
    sequences.begin[width] = end;
    for (int i = 0; i < code.count; ++i) {
      const uint8_t symbol = code.symbols[i];
      const int length = lengths.of[symbol];
      if (length > width) break;
      const int before = width - length;
      for (int k = sequences.begin[before]; k < sequences.begin[before + 1]; ++k) {
        const uint64_t shorter = sequences.entries[k];
        if (count_of(shorter) == kMostAtOnce) continue;
        const uint64_t entry = extended(shorter, symbol, length);
        const uint16_t bits = static_cast<uint16_t>(sequences.bits[k] | code.bits[symbol] << before);
        table->entries[bits] = entry;
        if (width == kLongest) continue;
        sequences.bits[end] = bits;
        sequences.entries[end++] = entry;
      }
    }
  }
}

}  // namespace zipmoe::huffman
