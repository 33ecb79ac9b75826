#include "huffman/plan.h"

#include <algorithm>

#include "huffman/chunk.h"

namespace zipmoe::huffman {
namespace {

constexpr size_t kFewestCols = 256;    // shorter rows are not worth a base
constexpr int kMiddle = 128;           // the symbol of the exponent that nine tenths of a row do not exceed
constexpr uint64_t kWorthwhile = 128;  // bases have to save 1 of this many bits, since adding them takes time

struct Histogram {
  uint32_t of[kSymbols] = {};  // fewer than 4 Gi in all

  // Adds the counts of a row, with symbols relative to the base.
  void add(const Histogram& row, uint8_t base) {
    for (int e = base; e < kSymbols; ++e) of[e - base] += row.of[e];
    for (int e = 0; e < base; ++e) of[e - base + kSymbols] += row.of[e];
  }
  ptrdiff_t distinct() const { return kSymbols - std::count(of, of + kSymbols, 0u); }
  // The smallest exponent that nine tenths of the exponents do not exceed. It follows the scale of a row and does not
  // depend on exponents far below.
  int upper_end(size_t count) const {
    int e = 0;
    for (uint64_t so_far = of[0]; 10 * so_far < 9 * count; so_far += of[e]) ++e;
    return e;
  }
};

// Counts exponents. Several counters per exponent, so that a run of equal exponents does not wait for its own
// increments.
Histogram histogram_of(const uint8_t* e, size_t n) {
  constexpr size_t kCounters = 4;
  uint32_t counters[kCounters][kSymbols] = {};
  size_t i = 0;
  for (; i + kCounters <= n; i += kCounters) {
    for (size_t k = 0; k < kCounters; ++k) ++counters[k][e[i + k]];
  }
  for (; i < n; ++i) ++counters[0][e[i]];
  Histogram histogram;
  for (int s = 0; s < kSymbols; ++s) {
    histogram.of[s] = counters[0][s] + counters[1][s] + counters[2][s] + counters[3][s];
  }
  return histogram;
}

Plan plan_for(const Histogram& histogram, size_t cols) {
  Plan plan = {cols, shortest_lengths(histogram.of), 0};
  for (int s = 0; s < kSymbols; ++s) plan.bits += uint64_t{histogram.of[s]} * plan.lengths.of[s];
  return plan;
}

}  // namespace

Plan choose(Plane plane, size_t cols, uint8_t* bases) {
  const bool has_rows = cols >= kFewestCols && cols < plane.n;
  if (!has_rows) return plan_for(histogram_of(plane.e, plane.n), 0);
  Histogram whole, aligned;
  for (size_t row = 0, begin = 0; begin < plane.n; ++row, begin += cols) {
    const size_t count = std::min(cols, plane.n - begin);
    const Histogram histogram = histogram_of(plane.e + begin, count);
    bases[row] = static_cast<uint8_t>(histogram.upper_end(count) - kMiddle);
    whole.add(histogram, 0);
    aligned.add(histogram, bases[row]);
  }
  const Plan without = plan_for(whole, 0);
  if (aligned.distinct() < 2) return without;
  const Plan with = plan_for(aligned, cols);
  const uint64_t bits = with.bits + 8 * divided_up(plane.n, cols);
  return bits * kWorthwhile <= without.bits * (kWorthwhile - 1) ? with : without;
}

}  // namespace zipmoe::huffman
