// Exponents to chunks. FORMAT.md, section `huffman`, has the bytes, zipmoe/codec/huffman_twin.py the choices.
#include <algorithm>

#include "huffman.h"
#include "huffman_chunk.h"

namespace zipmoe::huffman {
namespace {

constexpr size_t kFewestCols = 256;    // of shorter rows none is worth a base
constexpr int kReach = 4;              // how far from its commonest exponent a row's base is looked for
constexpr int kMiddle = 128;           // the symbol of a row's commonest exponent, at first: symbols lie together
constexpr uint64_t kWorthwhile = 128;  // bases have to save one bit of so many, since adding them takes time

struct Plane {
  const uint8_t* e;
  size_t n;
};

struct Histogram {
  uint32_t of[kSymbols] = {};  // fewer than 4 Gi in all

  // Adds the counts of a row as they are seen from its base.
  void add(const Histogram& row, uint8_t base) {
    for (int e = base; e < kSymbols; ++e) of[e - base] += row.of[e];
    for (int e = 0; e < base; ++e) of[e - base + kSymbols] += row.of[e];
  }
  int distinct() const { return static_cast<int>(std::count_if(of, of + kSymbols, [](uint32_t count) { return count > 0; })); }
  int commonest() const { return static_cast<int>(std::max_element(of, of + kSymbols) - of); }
};

// Several counters for each exponent, so that a run of one does not wait for itself.
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

// How a chunk is coded: with bases for rows of `cols` weights, or without (0), and what its codewords take.
struct Plan {
  size_t cols;
  Lengths lengths;
  uint64_t bits;
};

Plan plan_for(const Histogram& histogram, size_t cols) {
  Plan plan = {cols, shortest_lengths(histogram.of), 0};
  for (int s = 0; s < kSymbols; ++s) plan.bits += uint64_t{histogram.of[s]} * plan.lengths.of[s];
  return plan;
}

template <typename Visit>
void for_each_row(Plane plane, size_t cols, Visit visit) {
  for (size_t row = 0, begin = 0; begin < plane.n; ++row, begin += cols) {
    visit(row, histogram_of(plane.e + begin, std::min(cols, plane.n - begin)));
  }
}

// The base near `guess` from which the row takes the fewest bits; of equals, the nearest, and the higher of two.
uint8_t best_base(const Histogram& row, uint8_t guess, const Lengths& lengths) {
  uint8_t present[kSymbols];
  int present_count = 0;
  for (int e = 0; e < kSymbols; ++e) {
    present[present_count] = static_cast<uint8_t>(e);
    present_count += row.of[e] > 0;
  }
  uint8_t best = guess;
  uint64_t fewest = UINT64_MAX;
  for (int step = 0; step <= 2 * kReach; ++step) {
    const int distance = (step + 1) / 2;
    const uint8_t base = static_cast<uint8_t>(guess + (step % 2 == 1 ? distance : -distance));
    uint64_t bits = 0;
    for (int i = 0; i < present_count; ++i) {
      const int length = lengths.of[static_cast<uint8_t>(present[i] - base)];
      bits += uint64_t{row.of[present[i]]} * (length > 0 ? length : kLongest + 1);
    }
    if (bits < fewest) {
      fewest = bits;
      best = base;
    }
  }
  return best;
}

// Finds the code, and bases where they are worthwhile. The plane has two different exponents at least; `bases` has room
// for one byte a row and holds the bases of a plan that has rows.
Plan choose(Plane plane, size_t cols, uint8_t* bases) {
  const bool has_rows = cols >= kFewestCols && cols < plane.n;
  if (!has_rows) return plan_for(histogram_of(plane.e, plane.n), 0);
  Histogram whole, aligned;
  int lowest = kSymbols, highest = 0;
  for_each_row(plane, cols, [&](size_t row, const Histogram& histogram) {
    const int commonest = histogram.commonest();
    bases[row] = static_cast<uint8_t>(commonest - kMiddle);
    lowest = std::min(lowest, commonest);
    highest = std::max(highest, commonest);
    whole.add(histogram, 0);
    aligned.add(histogram, bases[row]);
  });
  const Plan without = plan_for(whole, 0);
  // Two exponents are about equally common in many rows: that they take turns is not a difference between rows.
  if (highest - lowest <= 1 || aligned.distinct() < 2) return without;
  const Lengths first = shortest_lengths(aligned.of);
  Histogram refined;
  for_each_row(plane, cols, [&](size_t row, const Histogram& histogram) {
    bases[row] = best_base(histogram, bases[row], first);
    refined.add(histogram, bases[row]);
  });
  if (refined.distinct() < 2) return without;
  const Plan with = plan_for(refined, cols);
  const uint64_t bits = with.bits + 8 * divided_up(plane.n, cols);
  return bits * kWorthwhile <= without.bits * (kWorthwhile - 1) ? with : without;
}

// Writes codewords, lowest bit first, eight bytes at a time: up to seven bytes behind its end are overwritten.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* to) : to_(to) {}

  void put(uint64_t bits, unsigned count) {
    bits_ |= bits << count_;
    count_ += count;
  }
  void flush() {
    memcpy(to_, &bits_, sizeof bits_);
    to_ += count_ / 8;
    bits_ >>= count_ & ~7u;
    count_ &= 7;
  }
  uint8_t* end() {
    flush();
    return to_ + (count_ > 0);
  }

 private:
  uint8_t* to_;
  uint64_t bits_ = 0;
  unsigned count_ = 0;
};

class Encoder {
 public:
  Encoder(Plane plane, const Plan& plan, const uint8_t* bases) : plane_(plane), cols_(plan.cols), bases_(bases) {
    const Code code = canonical_code(plan.lengths);
    for (int i = 0; i < 2 * kSymbols; ++i) {
      bits_[i] = code.bits[i % kSymbols];
      counts_[i] = plan.lengths.of[i % kSymbols];
    }
  }

  // Writes the stream of the exponents in [begin, end), last one first, and returns where it ends.
  uint8_t* write(size_t begin, size_t end, uint8_t* to) const {
    BitWriter writer(to);
    while (end > begin) {
      const size_t row = cols_ == 0 ? 0 : (end - 1) / cols_;
      const size_t row_begin = std::max(begin, row * cols_);
      write_run(plane_.e + row_begin, plane_.e + end, cols_ == 0 ? 0 : bases_[row], &writer);
      end = row_begin;
    }
    return writer.end();
  }

 private:
  static constexpr ptrdiff_t kAtOnce = 5;  // codewords that fit 64 bits beside the seven that a flush may leave

  void write_run(const uint8_t* begin, const uint8_t* end, uint8_t base, BitWriter* writer) const {
    const uint32_t* bits = bits_ + kSymbols - base;
    const uint32_t* counts = counts_ + kSymbols - base;
    BitWriter local = *writer;
    for (; end - begin >= kAtOnce; end -= kAtOnce) {
#pragma GCC unroll 8
      for (ptrdiff_t k = 1; k <= kAtOnce; ++k) local.put(bits[end[-k]], counts[end[-k]]);
      local.flush();
    }
    for (; end > begin; --end) local.put(bits[end[-1]], counts[end[-1]]);
    local.flush();
    *writer = local;
  }

  Plane plane_;
  size_t cols_;
  const uint8_t* bases_;
  // By exponent, twice over: beginning later by 256 less a base, they are those of the row's exponents.
  uint32_t bits_[2 * kSymbols];
  uint32_t counts_[2 * kSymbols];
};

void write_header(Plane plane, Kind kind, size_t cols, uint8_t* chunk) {
  memcpy(chunk, kMagic, 4);
  store_u32(chunk + 4, plane.n);
  store_u32(chunk + 8, cols);
  store_u32(chunk + 12, kind);
}

// The symbols that a chunk has to have a length for: from the first that occurs to the last.
struct Range {
  size_t first;
  size_t last;

  explicit Range(const Lengths& lengths) : first(0), last(kSymbols - 1) {
    while (lengths.of[first] == 0) ++first;
    while (lengths.of[last] == 0) --last;
  }
  size_t symbols() const { return last - first + 1; }
};

void write_lengths(const Lengths& lengths, Range range, uint8_t* to) {
  *to++ = static_cast<uint8_t>(range.first);
  *to++ = static_cast<uint8_t>(range.last);
  for (size_t s = range.first; s <= range.last; s += 2) {
    *to++ = static_cast<uint8_t>(lengths.of[s] | (s < range.last ? lengths.of[s + 1] << 4 : 0));
  }
}

// The bases, if there are some, have to stand behind the header already.
size_t write_coded(Plane plane, const Plan& plan, const Outline& outline, uint8_t* chunk) {
  uint8_t* const bases = chunk + outline.bases();
  memmove(bases, chunk + kHeaderBytes, outline.rows);
  write_header(plane, kCoded, plan.cols, chunk);
  write_lengths(plan.lengths, Range(plan.lengths), chunk + kHeaderBytes);
  const Encoder encoder(plane, plan, bases);
  uint8_t* sizes = chunk + outline.sizes();
  uint8_t* to = chunk + outline.streams();
  for (size_t begin = 0; begin < plane.n; begin += kBlockWeights) {
    const size_t count = std::min(kBlockWeights, plane.n - begin);
    for (size_t i = 0, each = stream_weights(count); i < kStreams; ++i, sizes += 2) {
      uint8_t* const end = encoder.write(begin + std::min(count, i * each), begin + std::min(count, (i + 1) * each), to);
      store_u16(sizes, static_cast<size_t>(end - to));
      to = end;
    }
  }
  memset(to, 0, kTailBytes);
  return static_cast<size_t>(to - chunk) + kTailBytes;
}

size_t write_stored(Plane plane, uint8_t* chunk) {
  write_header(plane, kStored, 0, chunk);
  std::copy(plane.e, plane.e + plane.n, chunk + kHeaderBytes);
  return kHeaderBytes + plane.n;
}

size_t compress(Plane plane, size_t cols, uint8_t* chunk) {
  if (plane.n == 0) return write_stored(plane, chunk);
  if (std::all_of(plane.e, plane.e + plane.n, [&](uint8_t e) { return e == plane.e[0]; })) {
    write_header(plane, kConstant, 0, chunk);
    chunk[kHeaderBytes] = plane.e[0];
    return kHeaderBytes + 1;
  }
  const Plan plan = choose(plane, cols, chunk + kHeaderBytes);
  const Outline outline = outline_of(Range(plan.lengths).symbols(), plane.n, plan.cols);
  const uint64_t at_most = outline.streams() + plan.bits / 8 + outline.blocks * kStreams + kTailBytes;
  return at_most < kHeaderBytes + plane.n ? write_coded(plane, plan, outline, chunk) : write_stored(plane, chunk);
}

}  // namespace
}  // namespace zipmoe::huffman

size_t zipmoe_huffman_bound(size_t n) {
  using namespace zipmoe::huffman;
  return n > kMostWeights ? 0 : kHeaderBytes + std::max<size_t>(n, 1);
}

size_t zipmoe_huffman_compress(const uint8_t* e, size_t n, size_t cols, uint8_t* chunk) {
  return zipmoe_huffman_bound(n) == 0 ? 0 : zipmoe::huffman::compress({e, n}, cols, chunk);
}
