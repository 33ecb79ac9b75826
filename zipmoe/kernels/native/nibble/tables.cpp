#include "nibble/tables.h"

#include <algorithm>

namespace zipmoe::nibble {
namespace {

constexpr size_t kSampled = 64;
constexpr uint16_t kWithoutSign = 0x7fff;

uint8_t greatest(const uint16_t* row, size_t count) {
  int16_t most = 0;
  for (size_t i = 0; i < count; ++i) most = std::max(most, static_cast<int16_t>(row[i] & kWithoutSign));
  return static_cast<uint8_t>(most >> 8);
}

}  // namespace

void choose(const uint16_t* row, size_t count, uint8_t* table) {
  uint32_t counts[128] = {};
  const size_t step = std::max<size_t>(count / kSampled, 1);
  for (size_t i = 0, taken = 0; i < count && taken < kSampled; i += step, ++taken) ++counts[(row[i] & kWithoutSign) >> 8];
  uint32_t best[128];
  for (uint32_t high = 0; high < 128; ++high) best[high] = counts[high] << 8 | high;
  std::partial_sort(best, best + kRanks, best + 128, [](uint32_t a, uint32_t b) { return a > b; });
  size_t ranks = 0;
  while (ranks < kRanks && best[ranks] >> 8 != 0) {
    table[ranks] = static_cast<uint8_t>(best[ranks] & 0x7f);
    ++ranks;
  }
  const uint8_t most = greatest(row, count);
  if (std::find(table, table + ranks, most) == table + ranks) {
    ranks = std::min(ranks, kRanks - 1);
    table[ranks++] = most;
  }
  // What the sample lacks are most likely smaller weights.
  for (uint8_t next = table[0]; ranks < kRanks;) {
    next = (next - 1) & 0x7f;
    if (std::find(table, table + ranks, next) == table + ranks) table[ranks++] = next;
  }
}

}  // namespace zipmoe::nibble
