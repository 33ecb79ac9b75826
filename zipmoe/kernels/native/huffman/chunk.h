// Offsets of the parts of a chunk (FORMAT.md, section `huffman`).
#ifndef ZIPMOE_KERNELS_HUFFMAN_CHUNK_H
#define ZIPMOE_KERNELS_HUFFMAN_CHUNK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "huffman/code.h"

namespace zipmoe::huffman {

constexpr char kMagic[] = "ZMH1";
constexpr size_t kMostWeights = 0xffffffff;
constexpr size_t kHeaderBytes = 16;
constexpr size_t kRangeBytes = 2;  // the first and the last symbol that has a length
constexpr size_t kBlockWeights = 1 << 16;
constexpr int kStreams = 6;
constexpr size_t kSizesBytes = 2 * kStreams;  // of a block's entry
constexpr size_t kTailBytes = 8;              // zeroes, so that 64 bits can be loaded anywhere in a stream

enum Kind : uint8_t { kStored = 0, kConstant = 1, kCoded = 2 };

inline size_t divided_up(size_t n, size_t by) { return n / by + (n % by != 0); }

// Exponents per stream of a block. The last streams have the remaining exponents.
inline size_t stream_weights(size_t block_weights) { return divided_up(block_weights, kStreams); }

// Offsets of the parts of a coded chunk.
struct Outline {
  size_t symbols;  // from the first to the last one that has a length
  size_t rows;     // that have a base
  size_t blocks;

  size_t lengths() const { return kHeaderBytes + kRangeBytes; }
  size_t bases() const { return lengths() + divided_up(symbols, 2); }
  size_t sizes() const { return bases() + rows; }
  size_t streams() const { return sizes() + blocks * kSizesBytes; }
};

inline Outline outline_of(size_t symbols, size_t n, size_t cols) {
  return {symbols, cols == 0 ? 0 : divided_up(n, cols), divided_up(n, kBlockWeights)};
}

inline uint32_t load_u16(const uint8_t* at) { return at[0] | at[1] << 8; }
inline uint32_t load_u32(const uint8_t* at) { return load_u16(at) | load_u16(at + 2) << 16; }

inline void store_u16(uint8_t* at, size_t value) {
  at[0] = static_cast<uint8_t>(value);
  at[1] = static_cast<uint8_t>(value >> 8);
}
inline void store_u32(uint8_t* at, size_t value) {
  store_u16(at, value);
  store_u16(at + 2, value >> 16);
}

// Loads eight bytes, the first byte lowest, as streams are read.
inline uint64_t load_u64(const uint8_t* at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace zipmoe::huffman

#endif
