#include "huffman/streams.h"

#include <algorithm>

namespace zipmoe::huffman {
namespace {

constexpr int kLookups = 5;  // between two loads: a load gives 56 bits at least, and a lookup takes 11 at most
constexpr size_t kRoundBytes = 7;
constexpr size_t kRoundSymbols = kLookups * kMostAtOnce;
constexpr size_t kEntryBytes = sizeof(uint64_t);
constexpr size_t kLineBytes = 64;
constexpr size_t kLinesAhead = 2;  // of SM bytes a round; a round decodes 115 exponents of normally distributed weights
constexpr int kSecondLevelCache = 2;

// Loads the next bits of a stream, lowest first. Bit 63 is set as a marker, then all bits move down. The zeroes above
// the marker count the bits that are gone, the skipped bits included.
inline uint64_t load_bits(const uint8_t* from, unsigned skip) { return (load_u64(from) | uint64_t{1} << 63) >> skip; }
inline unsigned bits_gone(uint64_t bits) { return static_cast<unsigned>(__builtin_clzll(bits)); }

inline uint64_t look_up(const Table& table, uint64_t bits) { return table.entries[bits & ((1 << kLongest) - 1)]; }
inline void store_entry(uint64_t entry, uint8_t* to) { memcpy(to - kEntryBytes, &entry, kEntryBytes); }

// Advances each stream by some rounds. The caller guarantees enough input and output for these rounds.
template <bool kFetch>
void run(Stream streams[kStreams], const Table& table, size_t rounds, Ahead* ahead) {
  // Local copies, so that as many as possible stay in registers. The machine has too few registers only for pointers
  // that a round uses once.
  uint64_t bits[kStreams];
  const uint8_t* from[kStreams];
  uint8_t* to[kStreams];
  for (int i = 0; i < kStreams; ++i) {
    from[i] = streams[i].from;
    to[i] = streams[i].to;
    bits[i] = load_bits(from[i], streams[i].skip);
  }
  const uint8_t* sm = kFetch ? ahead->sm : nullptr;
  uint8_t* bf16 = kFetch ? ahead->bf16 : nullptr;
  for (; rounds > 0; --rounds) {
#pragma GCC unroll 8
    for (int lookup = 0; lookup < kLookups; ++lookup) {
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) {
        const uint64_t entry = look_up(table, bits[i]);
        bits[i] >>= bits_of(entry);
        store_entry(entry, to[i]);
        to[i] -= count_of(entry);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) {
      const unsigned gone = bits_gone(bits[i]);
      from[i] += gone / 8;
      bits[i] = load_bits(from[i], gone % 8);
    }
    if (!kFetch) continue;
#pragma GCC unroll 8
    for (size_t line = 0; line < kLinesAhead; ++line, sm += kLineBytes, bf16 += 2 * kLineBytes) {
      __builtin_prefetch(sm, 0, kSecondLevelCache);
      __builtin_prefetch(bf16, 1, kSecondLevelCache);
      __builtin_prefetch(bf16 + kLineBytes, 1, kSecondLevelCache);
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    streams[i].from = from[i];
    streams[i].skip = bits_gone(bits[i]);
    streams[i].to = to[i];
  }
  if (kFetch) *ahead = {sm, bf16};
}

// Number of rounds that are safe for all possible bits.
size_t safe_rounds(const Stream& stream, const uint8_t* last_load) {
  const size_t room = static_cast<size_t>(stream.to - stream.to_begin);
  if (room < kEntryBytes || stream.from > last_load) return 0;
  return std::min((room - kEntryBytes) / kRoundSymbols, static_cast<size_t>(last_load - stream.from) / kRoundBytes);
}

// Recovers the rest of a stream. Returns whether the last codeword ends at the end of the stream, with zero bits up to
// a whole byte.
bool finish(Stream stream, const Table& table) {
  while (stream.to > stream.to_begin) {
    if (stream.from > stream.from_end) return false;
    uint64_t bits = load_bits(stream.from, stream.skip);
    for (int lookup = 0; lookup < kLookups && stream.to > stream.to_begin; ++lookup) {
      const uint64_t entry = look_up(table, bits);
      if (static_cast<size_t>(stream.to - stream.to_begin) >= kEntryBytes) {
        store_entry(entry, stream.to);
        stream.to -= count_of(entry);
        bits >>= bits_of(entry);
      } else {
        *--stream.to = first_of(entry);
        bits >>= table.lengths.of[first_of(entry)];
      }
    }
    stream.from += bits_gone(bits) / 8;
    stream.skip = bits_gone(bits) % 8;
  }
  if (stream.skip == 0) return stream.from == stream.from_end;
  return stream.from + 1 == stream.from_end && *stream.from >> stream.skip == 0;
}

}  // namespace

bool decode_streams(Stream streams[kStreams], const Table& table, const uint8_t* last_load, Ahead* ahead) {
  for (;;) {
    size_t rounds = SIZE_MAX;
    for (int i = 0; i < kStreams; ++i) rounds = std::min(rounds, safe_rounds(streams[i], last_load));
    if (rounds == 0) break;
    if (ahead == nullptr) {
      run<false>(streams, table, rounds, ahead);
    } else {
      run<true>(streams, table, rounds, ahead);
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    if (!finish(streams[i], table)) return false;
  }
  return true;
}

}  // namespace zipmoe::huffman
