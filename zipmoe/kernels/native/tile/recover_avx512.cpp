// Recovers bf16 rows from a matrix in tile form, with AVX-512.
#include "linear/pairs_avx512.h"
#include "tile/decode_avx512.h"
#include "tile/tile.h"

namespace zipmoe::tile {
namespace {

constexpr size_t kTurned = 16;  // groups that are turned to rows at a time
constexpr size_t kTurnedInputs = kTurned * kGroupInputs;

// Turns sixteen operands to sixteen rows and stores `inputs` weights of the first `rows` rows.
void put(__m512i operands[kTurned], size_t rows, size_t inputs, size_t k, uint16_t* to) {
  linear::turn(operands);
  const __mmask32 some = static_cast<__mmask32>((uint64_t{1} << inputs) - 1);
  for (size_t row = 0; row < rows && row < kTurned; ++row, to += k) _mm512_mask_storeu_epi16(to, some, operands[row]);
}

template <class Groups>
void put_block(Groups& groups, size_t count, size_t rows, size_t inputs, size_t k, uint16_t* to) {
  for (size_t begin = 0; begin < count; begin += kTurned) {
    __m512i low[kTurned] = {}, high[kTurned] = {};
    for (size_t i = 0; i < kTurned && begin + i < count; ++i) groups.next(&low[i], &high[i]);
    const size_t at = begin * kGroupInputs, left = inputs - at < kTurnedInputs ? inputs - at : kTurnedInputs;
    put(low, rows, left, k, to + at);
    if (rows > kTurned) put(high, rows - kTurned, left, k, to + kTurned * k + at);
  }
}

}  // namespace

bool recover_avx512(const Matrix& matrix, size_t index, void* scratch, uint16_t* weight) {
  const Shape& shape = matrix.shape;
  Tile tile;
  if (!open_tile(matrix, index, &tile)) return false;
  const size_t left = shape.n - index * kTileOutputs, rows = left < kTileOutputs ? left : kTileOutputs;
  const uint8_t* at = tile.blocks;
  for (size_t begin = 0; begin < shape.k; begin += kBlockInputs) {
    Block block;
    if (!open_block(at, tile.end, shape.groups(begin), &block)) return false;
    const size_t inputs = shape.k - begin < kBlockInputs ? shape.k - begin : kBlockInputs;
    if (block.kind == Kind::kRaw) {
      Plain groups(block.weights);
      put_block(groups, block.groups, rows, inputs, shape.k, weight + begin);
    } else {
      const uint8_t* escapes = expand(block, tile.table, static_cast<Escapes*>(scratch));
      if (escapes == nullptr) return false;
      Coded<true> groups(tile, block, escapes);
      put_block(groups, block.groups, rows, inputs, shape.k, weight + begin);
      if (groups.escapes() != escapes + block.codes[1]) return false;
    }
    at = block.end;
  }
  return at == tile.end;
}

}  // namespace zipmoe::tile
