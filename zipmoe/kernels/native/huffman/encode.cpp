// Compresses exponents to chunks, by a plan.
#include <algorithm>

#include "huffman/huffman.h"
#include "huffman/chunk.h"
#include "huffman/plan.h"

namespace zipmoe::huffman {
namespace {

// Writes codewords, lowest bit first, eight bytes at a time. Overwrites up to seven bytes behind the end of its output.
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

  // Writes the stream of the exponents in [begin, end), the last exponent first, and returns the end of the stream.
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
  // Two copies of each table by exponent, one after the other. From index 256 - base on, a table is indexed by the
  // exponents of a row with that base.
  uint32_t bits_[2 * kSymbols];
  uint32_t counts_[2 * kSymbols];
};

void write_header(Plane plane, Kind kind, size_t cols, uint8_t* chunk) {
  memcpy(chunk, kMagic, 4);
  store_u32(chunk + 4, plane.n);
  store_u32(chunk + 8, cols);
  store_u32(chunk + 12, kind);
}

// The symbols with a length in the chunk: all symbols from the first to the last that occurs.
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

// Writes a coded chunk. The caller has put the bases of a plan with rows behind the header.
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
      const size_t first = begin + std::min(count, i * each), last = begin + std::min(count, (i + 1) * each);
      uint8_t* const end = encoder.write(first, last, to);
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
