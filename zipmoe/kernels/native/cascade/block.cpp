#include "cascade/block.h"

#include <string.h>

#include <array>

namespace zipmoe::cascade {
namespace {

// load32 and load16 are little-endian loads on every supported machine.
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

const uint8_t* entry_of(const Chunk& chunk, uint32_t index) {
  return chunk.bytes + kHeaderBytes + size_t{index} * kEntryBytes;
}

using Table = std::array<uint8_t, kRanks>;

// Offsets from the window's first exponent, modulo 256, for each growth byte. Level 1 has the first three exponents of
// the window. Each other level adds u exponents above (two bits of the growth byte, level 2 in the lowest) and 3 - u
// below.
constexpr std::array<Table, 256> window_offsets() {
  std::array<Table, 256> offsets{};
  for (int growth = 0; growth < 256; ++growth) {
    int below = 0, above = 2, rank = 0;
    for (int offset = 0; offset < 3; ++offset) offsets[growth][rank++] = static_cast<uint8_t>(offset);
    for (int level = 2; level <= kLevels; ++level) {
      const int up = growth >> 2 * (level - 2) & 3;
      for (int step = 0; step < up; ++step) offsets[growth][rank++] = static_cast<uint8_t>(++above);
      for (int step = up; step < 3; ++step) offsets[growth][rank++] = static_cast<uint8_t>(--below);
    }
    offsets[growth][rank] = static_cast<uint8_t>(below - 1);
  }
  return offsets;
}

alignas(64) constexpr std::array<Table, 256> kOffsets = window_offsets();

}  // namespace

bool open_chunk(const uint8_t* bytes, size_t nbytes, size_t weights, Chunk* chunk) {
  if (nbytes < kHeaderBytes || nbytes > UINT32_MAX) return false;
  const uint32_t cols = load32(bytes + 8), block_rows = load32(bytes + 12);
  if (load32(bytes) != kMagic || load32(bytes + 4) != weights) return false;
  if (cols < 1 || cols > kMostWeights || block_rows < 1) return false;
  const uint64_t stride = round_up(cols, kGroup);
  if (stride * block_rows > kMostWeights) return false;
  const uint64_t rows = round_up(weights, cols) / cols;
  const uint64_t block_count = round_up(rows, block_rows) / block_rows;
  if (block_count > (nbytes - kHeaderBytes) / kEntryBytes) return false;
  *chunk = {bytes,
            nbytes,
            static_cast<uint32_t>(weights),
            cols,
            static_cast<uint32_t>(stride),
            static_cast<uint32_t>(rows),
            block_rows,
            static_cast<uint32_t>(block_count)};
  return nbytes == (block_count ? load32(entry_of(*chunk, chunk->block_count - 1)) : kHeaderBytes);
}

bool open_block(const Chunk& chunk, uint32_t index, Block* block) {
  const uint8_t* entry = entry_of(chunk, index);
  const size_t end = load32(entry);
  const size_t begin =
      index ? load32(entry - kEntryBytes) : kHeaderBytes + size_t{chunk.block_count} * kEntryBytes;
  if (begin > end || end > chunk.nbytes || entry[14] > 2 || entry[15] != 0) return false;
  const size_t size = end - begin;

  block->kind = static_cast<Kind>(entry[14]);
  block->cols = chunk.cols;
  block->stride = chunk.stride;
  block->first_row = index * chunk.block_rows;
  const bool last = index == chunk.block_count - 1;
  block->rows = last ? chunk.rows - block->first_row : chunk.block_rows;
  const uint32_t full_rows = block->rows - 1;
  block->last_row_weights = last ? chunk.weights - (chunk.rows - 1) * chunk.cols : chunk.cols;
  block->codes[0] = full_rows * chunk.stride + static_cast<uint32_t>(round_up(block->last_row_weights, kGroup));
  for (int level = 1; level < kLevels; ++level) block->codes[level] = load16(entry + 2 + 2 * level);
  block->exceptions = load16(entry + 12);
  const uint8_t* next = chunk.bytes + begin;
  block->payload_bytes = size;
  block->tables = next;
  if (block->kind == Kind::kRaw) {
    static constexpr uint8_t kNoCodes[10] = {};
    return memcmp(entry + 4, kNoCodes, sizeof kNoCodes) == 0 &&
           size == size_t{full_rows} * chunk.cols + block->last_row_weights;
  }
  const size_t tables_bytes = block->kind == Kind::kTable ? kRanks : 2 * size_t{block->rows};
  block->positions = next += tables_bytes;
  block->exponents = next += 2 * block->exceptions;
  next += block->exceptions;
  size_t expected = tables_bytes + 3 * block->exceptions;
  // Level 1 comes last and consists of whole groups. A read of a whole group at the end of another level therefore
  // stays inside the payload.
  for (int level = kLevels - 1; level >= 0; --level) {
    block->levels[level] = next;
    next += level_bytes(block->codes[level]);
    expected += level_bytes(block->codes[level]);
  }
  return size == expected;
}

void window_table(const uint8_t* window, uint8_t* table) {
  const Table& offsets = kOffsets[window[1]];
  for (int rank = 0; rank < kRanks; ++rank) table[rank] = static_cast<uint8_t>(window[0] + offsets[rank]);
}

void row_table(const Block& block, uint32_t row, uint8_t* table) {
  if (block.kind == Kind::kTable) {
    memcpy(table, block.tables, kRanks);
  } else {
    window_table(block.tables + 2 * size_t{row}, table);
  }
}

}  // namespace zipmoe::cascade
