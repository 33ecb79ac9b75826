#include "nibble/tables.h"

#include <algorithm>

namespace zipmoe::nibble {
namespace {

constexpr size_t kSampled = 64;
constexpr uint16_t kWithoutSign = 0x7fff;

// The maximum of weights without their sign is that of their high bytes.
uint8_t greatest(const uint16_t* row, size_t count) {
  int16_t most = 0;
  for (size_t i = 0; i < count; ++i) {
    const int16_t weight = static_cast<int16_t>(row[i] & kWithoutSign);
    most = weight > most ? weight : most;
  }
  return static_cast<uint8_t>(most >> 8);
}

}  // namespace

void choose(const uint16_t* row, size_t count, uint8_t* table) {
  uint8_t counts[128] = {};
  uint32_t found[kSampled];  // how often, and which
  size_t kinds = 0;
  const size_t step = std::max<size_t>(count / kSampled, 1);
  for (size_t i = 0, taken = 0; i < count && taken < kSampled; i += step, ++taken) {
    const uint32_t high = (row[i] & kWithoutSign) >> 8;
    if (counts[high]++ == 0) found[kinds++] = high;
  }
  for (size_t i = 0; i < kinds; ++i) found[i] |= uint32_t{counts[found[i]]} << 8;
  std::sort(found, found + kinds, [](uint32_t a, uint32_t b) { return a > b; });
  size_t ranks = 0;
  for (; ranks < std::min(kinds, kRanks); ++ranks) table[ranks] = static_cast<uint8_t>(found[ranks] & 0xff);
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
