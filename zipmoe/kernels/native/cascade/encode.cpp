// Compresses exponents to cascade chunks, in portable C++. All sizes of a block are planned before its codes are
// packed.
#include <string.h>

#include <algorithm>

#include "cascade/cascade.h"
#include "cascade/block.h"
#include "cascade/group.h"
#include "cascade/plan.h"

namespace zipmoe::cascade {
namespace {

template <class Unsigned>
void store(uint8_t* bytes, Unsigned value) {
  memcpy(bytes, &value, sizeof value);
}

// Packs the 64 codes of a group: 0, 1 or 2 for bytes equal to one of `symbols`, 3 for all other bytes.
void pack_group(const uint8_t* bytes, const uint8_t* symbols, uint8_t* group) {
  Bytes packed = {};
  for (int pair = 0; pair < 4; ++pair) {
    Bytes sixteen;
    memcpy(&sixteen, bytes + 16 * pair, sizeof sixteen);
    const Bytes code =
        3 - (where(sixteen, symbols[0]) & 3) - (where(sixteen, symbols[1]) & 2) - (where(sixteen, symbols[2]) & 1);
    packed |= code << 2 * pair;
  }
  memcpy(group, &packed, sizeof packed);
}

// Packs one of the levels 2 to 5. Leaves the ranks that escape from this level in `ranks`.
void pack_level(uint8_t* ranks, size_t count, uint8_t first, uint8_t* bytes) {
  const uint8_t symbols[3] = {first, static_cast<uint8_t>(first + 1), static_cast<uint8_t>(first + 2)};
  uint8_t* escapes = ranks;  // never overtakes what is still to be read
  size_t i = 0;
  for (; i + kGroup <= count; i += kGroup, bytes += kGroupBytes) {
    pack_group(ranks + i, symbols, bytes);
    each_bit(escapes_of(bytes), [&](int k) { *escapes++ = ranks[i + k]; });
  }
  const size_t left = count - i, shared = (left + 3) / 4;
  memset(bytes, 0, shared);
  for (size_t k = 0; k < left; ++k) {
    const uint8_t rank = ranks[i + k];
    const int code = std::min(rank - first, 3);
    bytes[k % shared] = static_cast<uint8_t>(bytes[k % shared] | code << 2 * (k / shared));
    if (code == 3) *escapes++ = rank;
  }
}

constexpr uint8_t kException = 0xff;

// Makes the table from exponents to ranks; exponents without a rank have kException.
void ranks_of(const uint8_t* table, uint8_t* ranks) {
  memset(ranks, kException, 256);
  for (uint8_t rank = 0; rank < kRanks; ++rank) ranks[table[rank]] = rank;
}

void write_payload(const BlockRows& rows, const Plan& plan, uint8_t* payload) {
  const bool one_table = plan.kind == Kind::kTable;
  const size_t tables_bytes = plan.tables_bytes(rows.count());
  memcpy(payload, one_table ? plan.table : plan.windows, tables_bytes);
  uint8_t* positions = payload += tables_bytes;
  uint8_t* exponents = payload += 2 * size_t{plan.counts.exceptions};
  payload += plan.counts.exceptions;
  uint8_t* levels[kLevels];
  for (int level = kLevels - 1; level >= 0; --level) {
    levels[level] = payload;
    payload += level_bytes(plan.counts.codes[level]);
  }

  uint8_t escaped[kMostWeights], table[kRanks], rank_of[256];
  uint8_t* escapes = escaped;
  memcpy(table, plan.table, sizeof table);
  if (one_table) ranks_of(table, rank_of);
  for (size_t row = 0; row < rows.count(); ++row) {
    if (!one_table) {
      window_table(plan.windows + 2 * row, table);
      ranks_of(table, rank_of);
    }
    const uint8_t* e = rows.e + row * rows.cols;
    const size_t weights = rows.weights_of(row);
    for (size_t i = 0; i < weights; i += kGroup, levels[0] += kGroupBytes) {
      uint8_t padded[kGroup];
      const uint8_t* bytes = e + i;
      if (weights - i < kGroup) {
        memset(padded, table[0], kGroup);
        bytes = static_cast<const uint8_t*>(memcpy(padded, bytes, weights - i));
      }
      uint8_t* group = levels[0];
      pack_group(bytes, table, group);
      each_bit(escapes_of(group), [&](size_t k) {
        const uint8_t rank = rank_of[bytes[k]];
        if (rank != kException) {
          *escapes++ = rank;
          return;
        }
        group[k % 16] = static_cast<uint8_t>(group[k % 16] & ~(3 << 2 * (k / 16)));
        store(positions, static_cast<uint16_t>(row * rows.stride + i + k));
        positions += 2;
        *exponents++ = bytes[k];
      });
    }
  }
  for (int level = 1; level < kLevels; ++level) {
    pack_level(escaped, plan.counts.codes[level], static_cast<uint8_t>(3 * level), levels[level]);
  }
}

// Sizes of rows and blocks of a chunk.
struct Shape {
  size_t cols, stride, block_rows, block_count;

  // Sets the sizes. Returns false if no such chunk can exist.
  bool set(size_t n, size_t wanted_cols, size_t wanted_block_rows) {
    if (wanted_cols < 1 || wanted_cols > kMostWeights || wanted_block_rows < 1 || n > UINT32_MAX) return false;
    cols = wanted_cols;
    stride = round_up(cols, kGroup);
    block_rows = std::min(wanted_block_rows, kMostWeights / stride);
    block_count = ((n + cols - 1) / cols + block_rows - 1) / block_rows;
    return bound(n) <= UINT32_MAX;
  }

  size_t bound(size_t n) const { return kHeaderBytes + block_count * kEntryBytes + n; }
};

}  // namespace
}  // namespace zipmoe::cascade

size_t zipmoe_cascade_bound(size_t n, size_t cols, size_t block_rows) {
  zipmoe::cascade::Shape shape;
  return shape.set(n, cols, block_rows) ? shape.bound(n) : 0;
}

size_t zipmoe_cascade_compress(const uint8_t* e, size_t n, size_t cols, size_t block_rows, uint8_t* chunk) {
  using namespace zipmoe::cascade;
  Shape shape;
  if (!shape.set(n, cols, block_rows)) return 0;
  store(chunk, kMagic);
  store(chunk + 4, static_cast<uint32_t>(n));
  store(chunk + 8, static_cast<uint32_t>(shape.cols));
  store(chunk + 12, static_cast<uint32_t>(shape.block_rows));
  size_t end = kHeaderBytes + shape.block_count * kEntryBytes;
  uint8_t* entry = chunk + kHeaderBytes;
  for (size_t begin = 0; begin < n; begin += shape.block_rows * shape.cols, entry += kEntryBytes) {
    const BlockRows rows = {e + begin, shape.cols, shape.stride, std::min(shape.block_rows * shape.cols, n - begin)};
    Plan plan;
    choose(rows, &plan);
    if (plan.kind == Kind::kRaw) {
      memcpy(chunk + end, rows.e, rows.weights);
      end += rows.weights;
    } else {
      write_payload(rows, plan, chunk + end);
      end += plan.counts.payload_bytes(plan.tables_bytes(rows.count()));
    }
    store(entry, static_cast<uint32_t>(end));
    for (int level = 1; level < kLevels; ++level) {
      store(entry + 2 + 2 * level, static_cast<uint16_t>(plan.counts.codes[level]));
    }
    store(entry + 12, static_cast<uint16_t>(plan.counts.exceptions));
    entry[14] = static_cast<uint8_t>(plan.kind);
    entry[15] = 0;
  }
  return end;
}
