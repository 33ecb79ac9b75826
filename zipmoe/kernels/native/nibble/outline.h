// The outline of a matrix in nibble form, checked before any weight is decoded. FORMAT.md has the byte tables.
//
// Nibble form is made in memory for the order "lanes". A weight is its low byte and a nibble: the sign, and the rank of the
// upper seven bits of its exponent in a table of its output. A tile has two outputs and all inputs. It is read in four
// passes, one for each sixteen of the order's 64 lanes; a group of a pass has two outputs, sixteen lanes and two steps of
// 64 inputs: 64 weights. Inputs behind the last whole 128 stand as bf16 at the tile's end.
//
// Bytes are not trusted. Decoding a tile that open_matrix and open_tile have accepted never reads outside the matrix.
#ifndef ZIPMOE_KERNELS_NIBBLE_OUTLINE_H
#define ZIPMOE_KERNELS_NIBBLE_OUTLINE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace zipmoe::nibble {

constexpr uint32_t kMagic = 0x314e4d5a;  // "ZMN1"
constexpr size_t kUnit = 32;             // bytes; tiles begin at multiples
constexpr size_t kHeaderBytes = 12;      // of the matrix, before the places of the tiles
constexpr size_t kPlaceBytes = 4;
constexpr size_t kOutputs = 2;  // of a tile
constexpr size_t kRanks = 8;    // of an output
constexpr size_t kLanes = 64;
constexpr size_t kPasses = 4;
constexpr size_t kPassLanes = kLanes / kPasses;
constexpr size_t kGroupSteps = 2;
constexpr size_t kGroupInputs = kGroupSteps * kLanes;
constexpr size_t kOutputPlaces = kPassLanes * kGroupSteps;  // of an output in a group
constexpr size_t kGroup = kOutputs * kOutputPlaces;         // weights
constexpr size_t kGroupBytes = kGroup + kGroup / 2;         // low bytes, then nibbles
constexpr size_t kTileHeaderBytes = 32;
constexpr size_t kExceptionBytes = 4;        // high byte; 24 bits of place
constexpr size_t kMostInputs = size_t{1} << 25;  // so that a place in a pass has 24 bits
constexpr uint8_t kRawTable = 0xff;

constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

inline uint32_t load32(const uint8_t* bytes) {
  uint32_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

struct Shape {
  size_t n, k;

  size_t tiles() const { return (n + kOutputs - 1) / kOutputs; }
  size_t groups() const { return k / kGroupInputs; }  // of a pass
  size_t outline_bytes() const { return round_up(kHeaderBytes + (tiles() + 1) * kPlaceBytes, kUnit); }
  size_t raw_bytes() const { return round_up(kTileHeaderBytes + kOutputs * k * sizeof(uint16_t), kUnit); }
  // Where the inputs that are not coded begin in a coded tile, and behind them the exceptions.
  size_t rest_begin() const { return kTileHeaderBytes + kPasses * groups() * kGroupBytes; }
  size_t rest_bytes() const { return kOutputs * (k - groups() * kGroupInputs) * sizeof(uint16_t); }
  // Bytes of a coded tile with so many exceptions.
  size_t coded_bytes(size_t exceptions) const {
    return round_up(rest_begin() + rest_bytes() + exceptions * kExceptionBytes, kUnit);
  }
  // Bytes of a matrix whose tiles are all raw, the largest there is; 0 if the sizes are out of range.
  size_t bound() const;
};

struct Matrix {
  const uint8_t* bytes;
  size_t nbytes;  // of the matrix, which may be followed by other bytes
  Shape shape;
};

struct Tile {
  const uint8_t* tables;         // 8 ranks of each output: bits 14 to 8 of a weight
  uint32_t exceptions[kPasses];  // of each pass
  const uint8_t* listed[kPasses];
  const uint8_t* groups[kPasses];
  size_t coded;         // groups of a pass; 0 if the tile is raw
  const uint8_t* rest;  // bf16: the inputs that are not coded, of the first output, then of the second
};

struct Exception {
  size_t place;  // of the pass: group * 64 + place in the group
  uint8_t high;

  explicit Exception(const uint8_t* bytes) : place(load32(bytes) >> 8), high(bytes[0]) {}
};

// Checks that the bytes begin with the outline of a matrix of this shape that ends within `nbytes`.
bool open_matrix(const uint8_t* bytes, size_t nbytes, const Shape& shape, Matrix* matrix);

// Checks place, header and exceptions of a tile; `index` must be less than the number of tiles.
bool open_tile(const Matrix& matrix, size_t index, Tile* tile);

}  // namespace zipmoe::nibble

#endif
