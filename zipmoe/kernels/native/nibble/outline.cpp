#include "nibble/outline.h"

namespace zipmoe::nibble {
namespace {

const uint8_t* place_of(const uint8_t* bytes, size_t tile) { return bytes + kHeaderBytes + tile * kPlaceBytes; }

// The tables of a tile as two numbers: bit 7 of each byte is clear in a coded tile, and set in a raw one.
constexpr uint64_t kHighBits = 0x8080808080808080;

uint64_t load64(const uint8_t* bytes) {
  uint64_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

// Whether places ascend and lie within the groups of a pass.
bool are_sound(const uint8_t* listed, size_t count, size_t groups) {
  size_t least = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t place = Exception(listed + i * kExceptionBytes).place;
    if (place < least) return false;
    least = place + 1;
  }
  return least <= groups * kGroup;
}

bool open_raw(const Shape& shape, const uint8_t* bytes, size_t nbytes, Tile* tile) {
  if ((load64(bytes) & load64(bytes + kRanks)) != UINT64_MAX) return false;
  for (size_t pass = 0; pass < kPasses; ++pass) {
    if (tile->exceptions[pass] != 0) return false;
    tile->listed[pass] = tile->groups[pass] = bytes + kTileHeaderBytes;
  }
  tile->coded = 0;
  tile->rest = bytes + kTileHeaderBytes;
  return nbytes == shape.raw_bytes();
}

}  // namespace

size_t Shape::bound() const {
  // Below these limits no product overflows.
  if (n > INT32_MAX || k > kMostInputs || n * k > size_t{1} << 36) return 0;
  const size_t bytes = outline_bytes() + tiles() * raw_bytes();
  return bytes / kUnit <= UINT32_MAX ? bytes : 0;
}

bool open_matrix(const uint8_t* bytes, size_t nbytes, const Shape& shape, Matrix* matrix) {
  if (shape.bound() == 0 || nbytes < shape.outline_bytes()) return false;
  if (load32(bytes) != kMagic || load32(bytes + 4) != shape.n || load32(bytes + 8) != shape.k) return false;
  const size_t end = kUnit * load32(place_of(bytes, shape.tiles()));
  if (end > nbytes || kUnit * load32(place_of(bytes, 0)) != shape.outline_bytes()) return false;
  *matrix = {bytes, end, shape};
  return true;
}

bool open_tile(const Matrix& matrix, size_t index, Tile* tile) {
  const Shape& shape = matrix.shape;
  const size_t begin = kUnit * load32(place_of(matrix.bytes, index));
  const size_t end = kUnit * load32(place_of(matrix.bytes, index + 1));
  if (begin < shape.outline_bytes() || end > matrix.nbytes || begin + kTileHeaderBytes > end) return false;
  const uint8_t* bytes = matrix.bytes + begin;
  const size_t nbytes = end - begin;
  tile->tables = bytes;
  size_t exceptions = 0;
  for (size_t pass = 0; pass < kPasses; ++pass) {
    tile->exceptions[pass] = load32(bytes + kOutputs * kRanks + 4 * pass);
    exceptions += tile->exceptions[pass];
  }
  static_assert(kOutputs * kRanks == 2 * sizeof(uint64_t));
  if (bytes[0] == kRawTable) return open_raw(shape, bytes, nbytes, tile);
  if (((load64(bytes) | load64(bytes + kRanks)) & kHighBits) != 0) return false;
  if (exceptions > nbytes / kExceptionBytes || nbytes != shape.coded_bytes(exceptions)) return false;
  tile->coded = shape.groups();
  tile->rest = bytes + shape.rest_begin();
  const uint8_t* listed = tile->rest + shape.rest_bytes();
  for (size_t pass = 0; pass < kPasses; ++pass) {
    tile->listed[pass] = listed;
    tile->groups[pass] = bytes + kTileHeaderBytes + pass * tile->coded * kGroupBytes;
    if (!are_sound(listed, tile->exceptions[pass], tile->coded)) return false;
    listed += tile->exceptions[pass] * kExceptionBytes;
  }
  return true;
}

}  // namespace zipmoe::nibble
