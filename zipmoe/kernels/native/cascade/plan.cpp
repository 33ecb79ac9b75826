#include "cascade/plan.h"

namespace zipmoe::cascade {
namespace {

struct Histogram {
  uint32_t of[256];

  // Four counters per exponent, because repeated exponents would wait for their own increments.
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

// Adds the codes and exceptions of some weights with a table. Leaves out level 1, which depends on the rows' padding.
void count_codes(const Histogram& histogram, uint32_t weights, const uint8_t* table, Counts* counts) {
  uint32_t left = 0;
  for (int rank = 0; rank < kRanks; ++rank) left += histogram.of[table[rank]];
  counts->exceptions += weights - left;
  for (int level = 1; level < kLevels; ++level) {
    for (int rank = 3 * (level - 1); rank < 3 * level; ++rank) left -= histogram.of[table[rank]];
    counts->codes[level] += left;
  }
}

// Finds the 16 commonest exponents, commonest first. Equally common exponents are in ascending order.
void commonest(const Histogram& histogram, uint8_t* table) {
  uint32_t best[256];
  for (uint32_t x = 0; x < 256; ++x) best[x] = histogram.of[x] << 8 | (255 - x);  // a block has fewer than 2^24 weights
  std::partial_sort(best, best + kRanks, best + 256, [](uint32_t a, uint32_t b) { return a > b; });
  for (int rank = 0; rank < kRanks; ++rank) table[rank] = static_cast<uint8_t>(255 - (best[rank] & 0xff));
}

// Finds the window of neighbouring exponents that covers most weights at each level: first the best three exponents,
// then the best three more on both sides. On a tie takes the lower exponent, or fewer exponents above.
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

}  // namespace

void choose(const BlockRows& rows, Plan* plan) {
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
    count_codes(row_histogram, weights, table, &of_windows);
  }
  commonest(block, plan->table);
  count_codes(block, static_cast<uint32_t>(rows.weights), plan->table, &of_table);
  of_table.codes[0] = of_windows.codes[0] = level1;

  size_t smallest = rows.weights;
  plan->kind = Kind::kRaw;
  plan->counts = {};
  const auto consider = [&](Kind kind, const Counts& counts, size_t tables_bytes) {
    const size_t bytes = counts.payload_bytes(tables_bytes);
    const bool fits = counts.exceptions <= UINT16_MAX && counts.codes[1] <= UINT16_MAX;
    if (bytes >= smallest || !fits) return;
    smallest = bytes;
    plan->kind = kind;
    plan->counts = counts;
  };
  consider(Kind::kTable, of_table, kRanks);
  consider(Kind::kWindows, of_windows, 2 * rows.count());
}

}  // namespace zipmoe::cascade
