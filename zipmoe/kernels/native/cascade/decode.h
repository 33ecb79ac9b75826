// Recovers whole chunks on one instruction set, block after block.
#ifndef ZIPMOE_KERNELS_CASCADE_DECODE_H
#define ZIPMOE_KERNELS_CASCADE_DECODE_H

#include "cascade/block.h"
#include "cascade/rows.h"

namespace zipmoe::cascade {

// Aligned outputs of at least this size are written past the caches. Such writes do not read the overwritten memory
// first, and caches could not keep an expert until its use. Fuzzing sets a smaller size, because its outputs are
// smaller.
#ifndef ZIPMOE_STREAMED_BYTES
#define ZIPMOE_STREAMED_BYTES (256 << 10)
#endif
constexpr size_t kStreamedBytes = ZIPMOE_STREAMED_BYTES;

// Calls row(rows, index of the row's first weight, number of weights) for every row of the chunk.
template <class Isa, class Row>
bool each_row(const Chunk& chunk, Row row) {
  Scratch scratch;
  size_t begin = 0;
  for (uint32_t index = 0; index < chunk.block_count; ++index) {
    Block block;
    if (!open_block(chunk, index, &block)) return false;
    Rows<Isa> rows(block, &scratch);
    for (uint32_t i = 0; i < block.rows; ++i) {
      const size_t count = i + 1 == block.rows ? block.last_row_weights : block.cols;
      row(rows, begin, count);
      begin += count;
    }
    if (!rows.done()) return false;
  }
  return true;
}

template <class Isa>
bool recover(const uint8_t* bytes, size_t nbytes, const uint8_t* sm, uint8_t* bf16, size_t n) {
  Chunk chunk;
  if (!open_chunk(bytes, nbytes, n, &chunk)) return false;
  if constexpr (Isa::kStreams) {
    const bool aligned = reinterpret_cast<uintptr_t>(bf16) % 64 == 0 && chunk.cols % 32 == 0;
    if (aligned && 2 * n >= kStreamedBytes) {
      const bool sound = each_row<Isa>(chunk, [=](Rows<Isa>& rows, size_t begin, size_t) {
        rows.template weights<true>(sm + begin, bf16 + 2 * begin);
      });
      Isa::finish_stream();
      return sound;
    }
  }
  return each_row<Isa>(
      chunk, [=](Rows<Isa>& rows, size_t begin, size_t) { rows.weights(sm + begin, bf16 + 2 * begin); });
}

template <class Isa>
bool decompress(const uint8_t* bytes, size_t nbytes, uint8_t* e, size_t n) {
  Chunk chunk;
  if (!open_chunk(bytes, nbytes, n, &chunk)) return false;
  return each_row<Isa>(chunk, [=](Rows<Isa>& rows, size_t begin, size_t count) {
    if (count % kGroup == 0) {
      rows.exponents(e + begin);
    } else {
      alignas(64) uint8_t padded[kMostWeights];
      rows.exponents(padded);
      memcpy(e + begin, padded, count);
    }
  });
}

}  // namespace zipmoe::cascade

#endif
