// The outline of a matrix in tile form, checked before any weight is decoded. FORMAT.md has the byte tables.
//
// Tile form is made in memory for the product with few rows of inputs. A tile has 32 outputs and all inputs, a block of
// a tile has up to 1024 inputs, and a group of a block has 32 outputs and 2 inputs: 64 weights, which decode to two
// operands of the instruction vdpbf16ps. A matrix with other sizes is padded to whole groups.
//
// Bytes are not trusted. Decoding a block that open_matrix, open_tile and open_block have accepted never reads outside
// the matrix. Whether the levels of a block fit together is known only when the block has been decoded.
#ifndef ZIPMOE_KERNELS_TILE_OUTLINE_H
#define ZIPMOE_KERNELS_TILE_OUTLINE_H

#include <stddef.h>
#include <stdint.h>

namespace zipmoe::tile {

constexpr uint32_t kMagic = 0x31544d5a;  // "ZMT1"
constexpr size_t kLine = 64;             // bytes; tiles and blocks begin at multiples
constexpr size_t kHeaderBytes = 12;      // of the matrix, before the places of the tiles
constexpr size_t kPlaceBytes = 4;
constexpr size_t kTileOutputs = 32;
constexpr size_t kBlockInputs = 1024;
constexpr size_t kGroupInputs = 2;
constexpr size_t kGroup = kTileOutputs * kGroupInputs;  // weights, and codes of any level
constexpr size_t kGroupBytes = 16;                      // of 64 codes: code i in byte i % 16, bits 2 * (i / 16)
constexpr size_t kBlockHeaderBytes = 16;
constexpr size_t kMostCodes = kTileOutputs * kBlockInputs;  // of a level
constexpr int kLevels = 5;
constexpr int kRanks = 16;
constexpr uint8_t kMostOffset = 0x7f;  // of a table; those of exceptions have all 8 bits

enum class Kind : uint16_t { kCoded = 0, kRaw = 1 };

constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
constexpr size_t level_bytes(size_t codes) { return (codes + kGroup - 1) / kGroup * kGroupBytes; }

// Bytes of a raw block of some groups, the header included.
constexpr size_t raw_bytes(size_t groups) { return kLine + groups * kGroup * sizeof(uint16_t); }

struct Shape {
  size_t n, k;

  size_t tiles() const { return (n + kTileOutputs - 1) / kTileOutputs; }
  size_t blocks() const { return (k + kBlockInputs - 1) / kBlockInputs; }
  size_t outline_bytes() const { return round_up(kHeaderBytes + (tiles() + 1) * kPlaceBytes, kLine); }
  // Groups of the block that begins at input `begin`.
  size_t groups(size_t begin) const {
    const size_t inputs = k - begin < kBlockInputs ? k - begin : kBlockInputs;
    return (inputs + kGroupInputs - 1) / kGroupInputs;
  }
  // Bytes of a tile whose blocks are all raw.
  size_t most_tile_bytes() const;
  // Bytes of a matrix whose blocks are all raw, the largest there is; 0 if the sizes are out of range.
  size_t bound() const;
};

struct Matrix {
  const uint8_t* bytes;
  size_t nbytes;  // of the matrix, which may be followed by other bytes
  Shape shape;
};

struct Tile {
  const uint8_t* bases;  // an exponent for each output
  const uint8_t* table;  // an offset from the base for each rank
  const uint8_t* blocks;
  const uint8_t* end;
};

struct Block {
  Kind kind;
  size_t groups;
  uint32_t codes[kLevels];  // of each level
  uint32_t exceptions;
  const uint8_t* positions;  // 16 bits each: index of a code of level 2
  const uint8_t* offsets;    // one for each position
  const uint8_t* levels[kLevels];
  const uint8_t* weights;  // coded: the SM bytes, 64 a group. Raw: bf16, 128 bytes a group
  const uint8_t* end;      // where the next block begins
};

// Checks that the bytes begin with the outline of a matrix of this shape that ends within `nbytes`.
bool open_matrix(const uint8_t* bytes, size_t nbytes, const Shape& shape, Matrix* matrix);

// Checks the place of a tile; `index` must be less than the number of tiles.
bool open_tile(const Matrix& matrix, size_t index, Tile* tile);

// Checks the header of the block at `at` against the end of its tile.
bool open_block(const uint8_t* at, const uint8_t* end, size_t groups, Block* block);

}  // namespace zipmoe::tile

#endif
