// The outline of a cascade chunk, checked before any weight is recovered. FORMAT.md has the byte tables.
//
// A chunk is a header, an entry for each block, and the blocks' payloads. A block has some rows and is recovered
// independently of the other blocks, so that a consumer can start at any block. Within a block a weight is a rank, 0 to
// 15: the index of the exponent in the table of the row. Level 1 has a 2-bit code for every weight: 0, 1 or 2 for that
// rank, or 3 for an escape. Level 2 has a code for every escape of level 1: rank 3, 4 or 5, or escape, and so on. Code
// 3 of level 5 is rank 15. A weight with an exponent that is not in the table is coded as rank 0 and listed as an
// exception.
//
// Chunks are not trusted. Recovering a block that open_chunk and open_block have accepted never reads outside the
// chunk. Whether a level has as many escapes as the next level has codes is known only at the end (Rows::done).
#ifndef ZIPMOE_KERNELS_CASCADE_BLOCK_H
#define ZIPMOE_KERNELS_CASCADE_BLOCK_H

#include <stddef.h>
#include <stdint.h>

namespace zipmoe::cascade {

constexpr uint32_t kMagic = 0x31434d5a;  // "ZMC1"
constexpr size_t kHeaderBytes = 16;
constexpr size_t kEntryBytes = 16;
constexpr size_t kGroup = 64;             // codes that share 16 bytes: code i in byte i % 16, bits 2 * (i / 16)
constexpr size_t kGroupBytes = 16;
constexpr size_t kMostWeights = 65536;    // of a block, each row padded to whole groups: positions have 16 bits
constexpr int kLevels = 5;
constexpr int kRanks = 16;

enum class Kind : uint8_t {
  kRaw = 0,      // the exponents themselves
  kTable = 1,    // one table for all rows
  kWindows = 2,  // two bytes a row that say which run of neighbouring exponents its table is
};

struct Chunk {
  const uint8_t* bytes;
  size_t nbytes;
  uint32_t weights;
  uint32_t cols;        // weights a row; the last row of the chunk may be shorter
  uint32_t stride;      // cols rounded up to whole groups
  uint32_t rows;
  uint32_t block_rows;  // rows a block; the last block may have fewer
  uint32_t block_count;
};

struct Block {
  Kind kind;
  uint32_t cols;
  uint32_t stride;
  uint32_t first_row;         // in the chunk
  uint32_t rows;
  uint32_t last_row_weights;  // of this block's last row; all others have `cols`
  uint32_t exceptions;
  uint32_t codes[kLevels];    // of each level; level 1 counts its padding
  size_t payload_bytes;       // all of the following
  const uint8_t* tables;      // kRaw: the exponents. kTable: 16 bytes. kWindows: 2 bytes a row
  const uint8_t* positions;   // 16 bits each: row in the block * stride + column, ascending
  const uint8_t* exponents;   // one for each position
  const uint8_t* levels[kLevels];
};

// Bytes of `codes` codes of a level. Codes form whole groups of 64, except for the r codes of a last, partial group.
// These share q = ceil(r / 4) bytes: code i is in byte i % q, bits 2 * (i / q).
static constexpr size_t level_bytes(size_t codes) { return (codes + 3) / 4; }

static constexpr uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

// Checks that the chunk's header states `weights` weights and fits the chunk's size. Reads only the header and the last
// entry. Allocates nothing.
bool open_chunk(const uint8_t* bytes, size_t nbytes, size_t weights, Chunk* chunk);

// Checks a block's entry against the chunk. Blocks may be opened in any order, on any thread. `index` must be less than
// chunk.block_count.
bool open_block(const Chunk& chunk, uint32_t index, Block* block);

// Computes the 16 exponents of a window, by rank. A window has two bytes: the first exponent, and the growth per level.
void window_table(const uint8_t* window, uint8_t* table);

// Computes the 16 exponents of a row, by rank. `row` counts from the first row of the block. Not for kRaw.
void row_table(const Block& block, uint32_t row, uint8_t* table);

// Memory for the ranks of a block's escapes, large enough for all claims of a hostile block. It is larger than a cache,
// but only the bytes of actual escapes are touched, about a quarter of the block's weights.
struct Scratch {
  alignas(64) uint8_t even[kMostWeights + 2 * kGroup];
  alignas(64) uint8_t odd[kMostWeights + 2 * kGroup];
};

}  // namespace zipmoe::cascade

#endif
