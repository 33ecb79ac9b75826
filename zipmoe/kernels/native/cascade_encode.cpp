// Exponents to cascade chunks, in portable C++: histograms choose the tables and tell every size before a byte is
// written; then the codes are packed without a branch on the data.
#include <string.h>

#include <algorithm>

#include "cascade.h"
#include "cascade_block.h"
#include "cascade_group.h"

namespace zipmoe::cascade {
namespace {

constexpr size_t kMostRows = kMostWeights / kGroup;  // of a block

template <class Unsigned>
void store(uint8_t* bytes, Unsigned value) {
  memcpy(bytes, &value, sizeof value);
}

struct Histogram {
  uint32_t of[256];

  // Four counters for each exponent: the same exponent twice in a row would wait for its own increment.
  void count(const uint8_t* e, size_t n) {
    uint32_t part[4][256] = {};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      ++part[0][e[i]];
      ++part[1][e[i + 1]];
      ++part[2][e[i + 2]];
      ++part[3][e[i + 3]];
    }
    for (; i < n; ++i) ++part[0][e[i]];
    for (int x = 0; x < 256; ++x) of[x] = part[0][x] + part[1][x] + part[2][x] + part[3][x];
  }

  void add(const Histogram& other) {
    for (int x = 0; x < 256; ++x) of[x] += other.of[x];
  }
};

// How many codes each level has with a table, level 1 apart.
struct Counts {
  uint32_t codes[kLevels] = {};
  uint32_t exceptions = 0;

  void add(const Histogram& histogram, uint32_t weights, const uint8_t* table) {
    uint32_t left = weights;
    for (int rank = 0; rank < kRanks; ++rank) left -= histogram.of[table[rank]];
    exceptions += left;
    left = weights - left;  // exceptions stay in level 1, as rank 0
    for (int level = 1; level < kLevels; ++level) {
      for (int rank = 3 * (level - 1); rank < 3 * level; ++rank) left -= histogram.of[table[rank]];
      codes[level] += left;
    }
  }

  size_t payload_bytes(size_t tables_bytes) const {
    size_t bytes = tables_bytes + 3 * size_t{exceptions};
    for (uint32_t count : codes) bytes += level_bytes(count);
    return bytes;
  }

  bool fits() const { return exceptions <= UINT16_MAX && codes[1] <= UINT16_MAX; }
};

// The 16 commonest exponents, commonest first; equally common ones in ascending order.
void commonest(const Histogram& histogram, uint8_t* table) {
  uint32_t best[256];
  for (uint32_t x = 0; x < 256; ++x) best[x] = histogram.of[x] << 8 | (255 - x);  // a block has fewer than 2^24 weights
  std::partial_sort(best, best + kRanks, best + 256, [](uint32_t a, uint32_t b) { return a > b; });
  for (int rank = 0; rank < kRanks; ++rank) table[rank] = static_cast<uint8_t>(255 - (best[rank] & 0xff));
}

// The window of neighbouring exponents that holds most at each level: first the best three, then whatever three more on
// its two sides hold most. On a tie the lower exponent, or fewer above.
void best_window(const Histogram& histogram, uint8_t* window) {
  const auto at = [&histogram](int x) { return histogram.of[x & 255]; };
  int first = 0;
  uint32_t most = 0;
  for (int x = 0; x < 256; ++x) {
    const uint32_t held = at(x) + at(x + 1) + at(x + 2);
    if (held > most) {
      most = held;
      first = x;
    }
  }
  int below = first - 1, above = first + 3, growth = 0;  // the next on each side
  for (int level = 2; level <= kLevels; ++level) {
    uint32_t best = 0;
    int best_up = 0;
    for (int up = 0; up < 4; ++up) {
      uint32_t held = 0;
      for (int step = 0; step < up; ++step) held += at(above + step);
      for (int step = 0; step < 3 - up; ++step) held += at(below - step);
      if (held > best) {
        best = held;
        best_up = up;
      }
    }
    growth |= best_up << 2 * (level - 2);
    above += best_up;
    below -= 3 - best_up;
  }
  window[0] = static_cast<uint8_t>(first);
  window[1] = static_cast<uint8_t>(growth);
}

// What has been decided about a block before its payload is written.
struct Plan {
  Kind kind = Kind::kRaw;
  Counts counts;
  uint8_t table[kRanks];
  uint8_t windows[2 * kMostRows];

  size_t tables_bytes(size_t rows) const { return kind == Kind::kTable ? kRanks : 2 * rows; }
};

struct Rows {
  const uint8_t* e;
  size_t cols, stride, weights;  // weights of the block
  size_t count() const { return (weights + cols - 1) / cols; }
  size_t weights_of(size_t row) const { return std::min(cols, weights - row * cols); }
};

void choose(const Rows& rows, Plan* plan) {
  Histogram block = {}, row_histogram;
  Counts of_table, of_windows;
  uint32_t level1 = 0;
  for (size_t row = 0; row < rows.count(); ++row) {
    const uint32_t weights = static_cast<uint32_t>(rows.weights_of(row));
    level1 += static_cast<uint32_t>(round_up(weights, kGroup));
    row_histogram.count(rows.e + row * rows.cols, weights);
    block.add(row_histogram);
    uint8_t* window = plan->windows + 2 * row;
    best_window(row_histogram, window);
    uint8_t table[kRanks];
    window_table(window, table);
    of_windows.add(row_histogram, weights, table);
  }
  commonest(block, plan->table);
  of_table.add(block, static_cast<uint32_t>(rows.weights), plan->table);
  of_table.codes[0] = of_windows.codes[0] = level1;

  size_t smallest = rows.weights;
  plan->kind = Kind::kRaw;
  plan->counts = {};
  const auto consider = [&](Kind kind, const Counts& counts, size_t tables_bytes) {
    const size_t bytes = counts.payload_bytes(tables_bytes);
    if (bytes >= smallest || !counts.fits()) return;
    smallest = bytes;
    plan->kind = kind;
    plan->counts = counts;
  };
  consider(Kind::kTable, of_table, kRanks);
  consider(Kind::kWindows, of_windows, 2 * rows.count());
}

// The 64 codes of one group: 0, 1 or 2 for the bytes that equal one of `symbols`, 3 for all others.
void pack_group(const uint8_t* bytes, const uint8_t* symbols, uint8_t* group) {
  Bytes packed = {};
  for (int pair = 0; pair < 4; ++pair) {
    Bytes sixteen;
    memcpy(&sixteen, bytes + 16 * pair, sizeof sixteen);
    const Bytes code = 3 - ((sixteen == symbols[0]) & 3) - ((sixteen == symbols[1]) & 2) - ((sixteen == symbols[2]) & 1);
    packed |= code << 2 * pair;
  }
  memcpy(group, &packed, sizeof packed);
}

// Packs one of the levels 2 to 5 and leaves in `ranks` those that escape it.
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

// By exponent: its rank, or kException.
void ranks_of(const uint8_t* table, uint8_t* ranks) {
  memset(ranks, kException, 256);
  for (uint8_t rank = 0; rank < kRanks; ++rank) ranks[table[rank]] = rank;
}

void write_payload(const Rows& rows, const Plan& plan, uint8_t* payload) {
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

// The sizes that a chunk is cut by.
struct Shape {
  size_t cols, stride, block_rows, block_count;

  // False: there is no such chunk.
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
    const Rows rows = {e + begin, shape.cols, shape.stride, std::min(shape.block_rows * shape.cols, n - begin)};
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
