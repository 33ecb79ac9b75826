#include "tile/outline.h"

#include <string.h>

namespace zipmoe::tile {
namespace {

constexpr uint8_t kNothing[kLine] = {};

uint32_t load32(const uint8_t* bytes) {
  uint32_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

uint16_t load16(const uint8_t* bytes) {
  uint16_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

const uint8_t* place_of(const uint8_t* bytes, size_t tile) { return bytes + kHeaderBytes + tile * kPlaceBytes; }

}  // namespace

size_t Shape::most_tile_bytes() const {
  size_t bytes = kLine;
  for (size_t begin = 0; begin < k; begin += kBlockInputs) bytes += raw_bytes(groups(begin));
  return bytes;
}

size_t Shape::bound() const {
  // Below these limits no product overflows.
  if (n > INT32_MAX || k > INT32_MAX || n * k > size_t{1} << 36) return 0;
  const size_t bytes = outline_bytes() + tiles() * most_tile_bytes();
  return bytes / kLine <= UINT32_MAX ? bytes : 0;
}

bool open_matrix(const uint8_t* bytes, size_t nbytes, const Shape& shape, Matrix* matrix) {
  if (shape.bound() == 0 || nbytes < shape.outline_bytes()) return false;
  if (load32(bytes) != kMagic || load32(bytes + 4) != shape.n || load32(bytes + 8) != shape.k) return false;
  const size_t end = kLine * load32(place_of(bytes, shape.tiles()));
  if (end > nbytes || kLine * load32(place_of(bytes, 0)) != shape.outline_bytes()) return false;
  *matrix = {bytes, end, shape};
  return true;
}

bool open_tile(const Matrix& matrix, size_t index, Tile* tile) {
  const size_t begin = kLine * load32(place_of(matrix.bytes, index));
  const size_t end = kLine * load32(place_of(matrix.bytes, index + 1));
  if (begin < matrix.shape.outline_bytes() || end > matrix.nbytes || begin + kLine > end) return false;
  const uint8_t* bytes = matrix.bytes + begin;
  *tile = {bytes, bytes + kTileOutputs, bytes + kLine, matrix.bytes + end};
  for (int rank = 0; rank < kRanks; ++rank) {
    if (tile->table[rank] > kMostOffset) return false;
  }
  return memcmp(bytes + kTileOutputs + kRanks, kNothing, kLine - kTileOutputs - kRanks) == 0;
}

bool open_block(const uint8_t* at, const uint8_t* end, size_t groups, Block* block) {
  const size_t room = static_cast<size_t>(end - at);
  if (room < kBlockHeaderBytes) return false;
  block->groups = groups;
  block->codes[0] = static_cast<uint32_t>(groups * kGroup);
  for (int level = 1; level < kLevels; ++level) {
    block->codes[level] = load16(at + 2 * (level - 1));
    if (block->codes[level] > block->codes[level - 1]) return false;
  }
  block->exceptions = load16(at + 8);
  block->kind = static_cast<Kind>(load16(at + 10));
  if (load32(at + 12) != 0) return false;
  if (block->kind == Kind::kRaw) {
    block->weights = at + kLine;
    block->end = at + raw_bytes(groups);
    return block->codes[1] == 0 && block->exceptions == 0 && room >= raw_bytes(groups);
  }
  if (block->kind != Kind::kCoded || block->exceptions > block->codes[1]) return false;
  size_t place = kBlockHeaderBytes;
  block->positions = at + place;
  block->offsets = at + place + 2 * block->exceptions;
  place = round_up(place + 3 * block->exceptions, kGroupBytes);
  for (int level = kLevels - 1; level >= 0; --level) {
    block->levels[level] = at + place;
    place += level_bytes(block->codes[level]);
  }
  place = round_up(place, kLine);
  block->weights = at + place;
  place += groups * kGroup;
  block->end = at + place;
  return place <= room;
}

}  // namespace zipmoe::tile
