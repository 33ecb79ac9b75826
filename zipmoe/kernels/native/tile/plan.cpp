#include "tile/plan.h"

#include <string.h>

#include <algorithm>

namespace zipmoe::tile {
namespace {

constexpr size_t kSampledColumns = 64;
constexpr int kMiddle = 64;
constexpr uint32_t kExceptionBits = 28;  // position, offset, and a code on the levels 1 and 2

struct Histogram {
  uint32_t of[256] = {};
};

// The offsets with ranks, commonest first, and the bits of the sample with this table.
struct Candidate {
  uint8_t table[kRanks];
  uint32_t bits = 0;

  explicit Candidate(const Histogram& histogram) {
    uint32_t best[256], total = 0;
    for (uint32_t x = 0; x < 256; ++x) {
      total += histogram.of[x];
      best[x] = histogram.of[x] << 8 | (255 - x);  // a sample has fewer than 2^24 exponents
    }
    const auto more = [](uint32_t a, uint32_t b) { return a > b; };
    std::partial_sort(best, best + kRanks, best + kMostOffset + 1, more);
    uint32_t left = total;
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank % 3 == 0 && rank < 3 * kLevels) bits += 2 * left;
      left -= best[rank] >> 8;
      table[rank] = static_cast<uint8_t>(255 - (best[rank] & 0xff));
    }
    bits += kExceptionBits * left;
    // Exponents that the sample lacks are most likely those of small weights.
    uint8_t next = table[0];
    for (int rank = 1; rank < kRanks; ++rank) {
      if (best[rank] >> 8 != 0) continue;
      while (std::find(table, table + rank, next) != table + rank) next = (next - 1) & kMostOffset;
      table[rank] = next;
    }
  }
};

// The base with which the three neighbouring exponents that a row has most often are in the middle of the offsets.
uint8_t best_base(const uint16_t* counts, int lowest, int highest) {
  uint32_t most = 0;
  int base = lowest;
  for (int x = std::max(lowest - 2, 0); x <= highest; ++x) {
    const uint32_t held = counts[x] + counts[x + 1] + counts[x + 2];
    if (held <= most) continue;
    most = held;
    base = x;
  }
  return static_cast<uint8_t>(base - kMiddle);
}

// The multiple of 64 from which on the 128 exponents that a table can have are most frequent.
uint8_t common_base(const Histogram& exponents) {
  uint32_t most = 0;
  int base = 0;
  for (int first = 0; first < 256; first += kMiddle) {
    uint32_t held = 0;
    for (int offset = 0; offset <= kMostOffset; ++offset) held += exponents.of[(first + offset) & 255];
    if (held <= most) continue;
    most = held;
    base = first;
  }
  return static_cast<uint8_t>(base);
}

}  // namespace

void choose(const uint8_t* const* e, size_t rows, size_t k, Plan* plan) {
  Histogram exponents, offsets;
  const size_t step = std::max<size_t>(k / kSampledColumns, 1);
  for (size_t row = 0; row < rows; ++row) {
    uint16_t counts[256 + 2] = {};
    int lowest = 255, highest = 0;
    for (size_t column = 0, taken = 0; column < k && taken < kSampledColumns; column += step, ++taken) {
      const int exponent = e[row][column];
      ++counts[exponent];
      lowest = std::min(lowest, exponent);
      highest = std::max(highest, exponent);
    }
    const uint8_t base = plan->bases[row] = best_base(counts, lowest, highest);
    for (int x = lowest; x <= highest; ++x) {
      exponents.of[x] += counts[x];
      offsets.of[static_cast<uint8_t>(x - base)] += counts[x];
    }
  }
  const uint8_t base = common_base(exponents);
  Histogram common_offsets;
  for (int x = 0; x < 256; ++x) common_offsets.of[static_cast<uint8_t>(x - base)] = exponents.of[x];
  const Candidate by_row(offsets), common(common_offsets);
  // A base for each row suits its sample better than the rest of the row, by a little.
  const bool is_common = common.bits - common.bits / 64 < by_row.bits;
  memcpy(plan->table, is_common ? common.table : by_row.table, sizeof plan->table);
  if (is_common) memset(plan->bases, base, sizeof plan->bases);
  memset(plan->bases + rows, -plan->table[0], kTileOutputs - rows);
  memset(plan->ranks, kException, sizeof plan->ranks);
  for (int rank = 0; rank < kRanks; ++rank) plan->ranks[plan->table[rank]] = static_cast<uint8_t>(rank);
}

}  // namespace zipmoe::tile
