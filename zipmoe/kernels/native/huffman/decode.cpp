// Recovers exponents or bf16 weights from chunks.
#include <algorithm>

#include "huffman/huffman.h"
#include "huffman/streams.h"

namespace zipmoe::huffman {
namespace {

struct Chunk {
  const uint8_t* bytes;
  size_t nbytes;
};

// The output for n exponents: `e`, or, if `e` is null, `bf16`, where the exponents are merged with `sm`.
struct Target {
  int backend;
  size_t n;
  uint8_t* e;
  const uint8_t* sm;
  uint8_t* bf16;

  bool merges() const { return e == nullptr; }
  void merge(const uint8_t* exponents, size_t begin, size_t count) const {
    zipmoe_merge_planes(backend, sm + begin, exponents, bf16 + 2 * begin, count);
  }
};

bool decode_stored(Chunk chunk, const Target& target) {
  if (chunk.nbytes != kHeaderBytes + target.n) return false;
  const uint8_t* exponents = chunk.bytes + kHeaderBytes;
  if (target.merges()) {
    target.merge(exponents, 0, target.n);
  } else {
    std::copy(exponents, exponents + target.n, target.e);
  }
  return true;
}

bool decode_constant(Chunk chunk, const Target& target) {
  if (target.n == 0 || chunk.nbytes != kHeaderBytes + 1) return false;
  const uint8_t exponent = chunk.bytes[kHeaderBytes];
  if (!target.merges()) {
    memset(target.e, exponent, target.n);
    return true;
  }
  uint8_t exponents[4096];
  memset(exponents, exponent, sizeof exponents);
  for (size_t begin = 0; begin < target.n; begin += sizeof exponents) {
    target.merge(exponents, begin, std::min(sizeof exponents, target.n - begin));
  }
  return true;
}

// Reads the code lengths. Returns false if they are not the lengths of a complete code.
bool read_lengths(Chunk chunk, const Outline& outline, Lengths* lengths) {
  memset(lengths, 0, sizeof *lengths);
  const uint8_t* const nibbles = chunk.bytes + outline.lengths();
  const size_t first = chunk.bytes[kHeaderBytes];
  for (size_t i = 0; i < outline.symbols; ++i) lengths->of[first + i] = nibbles[i / 2] >> 4 * (i % 2) & 15;
  const bool padded = outline.symbols % 2 == 0 || nibbles[outline.symbols / 2] >> 4 == 0;
  return padded && is_complete(*lengths);
}

// Whether the streams end exactly at the zero bytes at the end of the chunk.
bool fills(Chunk chunk, const Outline& outline) {
  size_t end = outline.streams();
  for (size_t i = 0; i < outline.blocks * kStreams; ++i) end += load_u16(chunk.bytes + outline.sizes() + 2 * i);
  return chunk.nbytes == end + kTailBytes && load_u64(chunk.bytes + end) == 0;
}

// Merges symbols that are exponents with `sm` to weights. Does nothing if the target is exponents.
void hand_over(uint8_t* symbols, size_t begin, size_t count, const Target& target) {
  if (target.merges()) target.merge(symbols, begin, count);
}

// The same for symbols that count from the base of their row. Works row by row, so that a row stays in the first-level
// cache.
void hand_over_rows(uint8_t* symbols, size_t begin, size_t count, const uint8_t* bases, size_t cols,
                    const Target& target) {
  for (size_t end = begin + count; begin < end;) {
    const size_t row = begin / cols;
    const size_t row_count = std::min(end, (row + 1) * cols) - begin;
    const uint8_t base = bases[row];
    for (size_t i = 0; i < row_count; ++i) symbols[i] = static_cast<uint8_t>(symbols[i] + base);
    hand_over(symbols, begin, row_count, target);
    symbols += row_count;
    begin += row_count;
  }
}

bool decode_coded(Chunk chunk, size_t cols, const Target& target) {
  if (target.n == 0 || chunk.nbytes < kHeaderBytes + kRangeBytes) return false;
  const int first = chunk.bytes[kHeaderBytes], last = chunk.bytes[kHeaderBytes + 1];
  if (first >= last) return false;
  const Outline outline = outline_of(static_cast<size_t>(last - first) + 1, target.n, cols);
  if (chunk.nbytes < outline.streams() + kTailBytes || !fills(chunk, outline)) return false;
  Lengths lengths;
  if (!read_lengths(chunk, outline, &lengths)) return false;
  Table table;
  make_table(lengths, &table);
  const uint8_t* last_load = chunk.bytes + chunk.nbytes - kTailBytes;
  const uint8_t* sizes = chunk.bytes + outline.sizes();
  const uint8_t* from = chunk.bytes + outline.streams();
  uint8_t scratch[kBlockWeights];
  for (size_t begin = 0; begin < target.n; begin += kBlockWeights) {
    const size_t count = std::min(kBlockWeights, target.n - begin);
    uint8_t* const block = target.merges() ? scratch : target.e + begin;
    Stream streams[kStreams];
    for (size_t i = 0, each = stream_weights(count); i < kStreams; ++i, sizes += 2) {
      const uint8_t* const end = from + load_u16(sizes);
      streams[i] = {from, 0, end, block + std::min(count, (i + 1) * each), block + std::min(count, i * each)};
      from = end;
    }
    Ahead ahead = {};
    if (target.merges()) ahead = {target.sm + begin, target.bf16 + 2 * begin};
    if (!decode_streams(streams, table, last_load, target.merges() ? &ahead : nullptr)) return false;
    if (outline.rows == 0) {
      hand_over(block, begin, count, target);
    } else {
      hand_over_rows(block, begin, count, chunk.bytes + outline.bases(), cols, target);
    }
  }
  return true;
}

bool decode(Chunk chunk, const Target& target) {
  if (chunk.nbytes < kHeaderBytes || memcmp(chunk.bytes, kMagic, 4) != 0) return false;
  const size_t cols = load_u32(chunk.bytes + 8);
  const uint32_t kind = load_u32(chunk.bytes + 12);
  if (load_u32(chunk.bytes + 4) != target.n || (kind != kCoded && cols != 0)) return false;
  switch (kind) {
    case kStored:
      return decode_stored(chunk, target);
    case kConstant:
      return decode_constant(chunk, target);
    case kCoded:
      return decode_coded(chunk, cols, target);
    default:
      return false;
  }
}

int run(Chunk chunk, const Target& target) {
  if (zipmoe_backend_name(target.backend) == nullptr) return -1;
  return decode(chunk, target) ? 0 : -2;
}

}  // namespace
}  // namespace zipmoe::huffman

int zipmoe_huffman_decompress(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n) {
  return zipmoe::huffman::run({chunk, chunk_bytes}, {backend, n, e, nullptr, nullptr});
}

int zipmoe_huffman_recover(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16,
                           size_t n) {
  return zipmoe::huffman::run({chunk, chunk_bytes}, {backend, n, nullptr, sm, bf16});
}
