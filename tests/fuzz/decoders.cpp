// The fuzz target: every native decoder on hostile chunks, and every native encoder on any exponents.
//
//   input   u8 subject, modulo their number; u8 flags: bit 0 the place of the buffers, bits 1-6 their alignment, bit 7
//           whether there may be more than kFewWeights;
//           decoders: u24 count of weights, modulo the most there may be, then the chunk
//           encoders: u16 columns, u8 rows of a block, then the exponents
//
// Holds: nothing outside a buffer is touched; a decoder ends with 0 or an error; all backends agree on which; where it
// is 0 all of the output has been written, alike by all backends, and recovering is decompressing and merging; what
// an encoder writes fits its bound and decodes to what it was given.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cascade.h"
#include "placement.h"

namespace zipmoe::fuzz {
namespace {

constexpr size_t kMostWeights = 1 << 17;
constexpr size_t kFewWeights = 1 << 12;  // small buffers make many executions a second

struct Codec {
  const char* name;
  int (*decompress)(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
  int (*recover)(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);
  size_t (*bound)(size_t n, size_t cols, size_t block_rows);
  size_t (*compress)(const uint8_t* e, size_t n, size_t cols, size_t block_rows, uint8_t* chunk);
};

constexpr Codec kCodecs[] = {
    {"cascade", zipmoe_cascade_decompress, zipmoe_cascade_recover, zipmoe_cascade_bound, zipmoe_cascade_compress},
};
constexpr size_t kCodecCount = sizeof kCodecs / sizeof kCodecs[0];

[[noreturn]] void fail(const Codec& codec, int backend, const char* claim) {
  fprintf(stderr, "%s on %s: %s\n", codec.name, zipmoe_backend_name(backend), claim);
  abort();
}

// The bytes of an input, consumed from the front.
struct Input {
  const uint8_t* bytes;
  size_t nbytes;

  size_t number(size_t width) {
    size_t value = 0;
    for (size_t i = 0; i < width && nbytes > 0; ++i, ++bytes, --nbytes) value |= size_t{*bytes} << 8 * i;
    return value;
  }
};

struct Layout {
  Place place;
  size_t alignment;
  size_t most_weights;

  explicit Layout(size_t flags)
      : place(flags & 1 ? Place::kPageEnd : Place::kHeap),
        alignment(flags >> 1 & 63),
        most_weights(flags & 0x80 ? kMostWeights : kFewWeights) {}
};

void copy(const uint8_t* from, const Buffer& to) {
  if (to.nbytes() > 0) memcpy(to.start(), from, to.nbytes());
}

// Different bytes for every backend: where outputs agree, none of them has been left as it was.
void blank(const Buffer& buffer, int backend) { memset(buffer.start(), 0x11 * (backend + 1), buffer.nbytes()); }

// Whether the first backend accepts the chunk; aborts where another one differs. `e` gets the exponents.
bool decode_on_all(const Codec& codec, const Buffer& chunk, const Buffer& e, Layout layout) {
  const size_t n = e.nbytes();
  Buffer sm(layout.place, n, layout.alignment), merged(layout.place, 2 * n, layout.alignment);
  for (size_t i = 0; i < n; ++i) sm.start()[i] = static_cast<uint8_t>(i * 151 + 7);
  bool accepted = false;
  for (int backend = 0; backend < zipmoe_backend_count(); ++backend) {
    const auto claim = [&](bool held, const char* what) {
      if (!held) fail(codec, backend, what);
    };
    Buffer exponents(layout.place, n, layout.alignment), bf16(layout.place, 2 * n, layout.alignment);
    blank(exponents, backend);
    blank(bf16, backend);
    const int decompressed = codec.decompress(backend, chunk.start(), chunk.nbytes(), exponents.start(), n);
    const int recovered = codec.recover(backend, chunk.start(), chunk.nbytes(), sm.start(), bf16.start(), n);
    claim(decompressed <= 0 && recovered <= 0, "a result is above 0");
    claim((decompressed == 0) == (recovered == 0), "decompressing and recovering differ on whether the chunk is sound");
    claim(exponents.untouched_in_front() && bf16.untouched_in_front(), "bytes in front of an output were written");
    if (backend == 0) {
      accepted = decompressed == 0;
      if (accepted) memcpy(e.start(), exponents.start(), n);
      if (accepted) zipmoe_merge_planes(zipmoe_backend_count() - 1, sm.start(), e.start(), merged.start(), n);
    }
    claim((decompressed == 0) == accepted, "another backend differs on whether the chunk is sound");
    claim(!accepted || memcmp(exponents.start(), e.start(), n) == 0, "another backend has other exponents");
    claim(!accepted || memcmp(bf16.start(), merged.start(), 2 * n) == 0, "weights are not exponents and sm bytes merged");
  }
  return accepted;
}

bool decode(const Codec& codec, Layout layout, Input input) {
  const size_t n = input.number(3) % (layout.most_weights + 1);
  Buffer chunk(layout.place, input.nbytes, layout.alignment), e(Place::kHeap, n, 0);
  copy(input.bytes, chunk);
  const bool accepted = decode_on_all(codec, chunk, e, layout);
  if (memcmp(chunk.start(), input.bytes, input.nbytes) != 0) fail(codec, 0, "the chunk was written");
  return accepted;
}

bool encode(const Codec& codec, Layout layout, Input input) {
  const size_t cols = input.number(2), block_rows = input.number(1);
  Buffer plane(layout.place, input.nbytes, layout.alignment), e(Place::kHeap, input.nbytes, 0);
  copy(input.bytes, plane);
  const size_t bound = codec.bound(plane.nbytes(), cols, block_rows);
  if (bound == 0) return false;
  Buffer room(Place::kHeap, bound, layout.alignment);
  const size_t nbytes = codec.compress(plane.start(), plane.nbytes(), cols, block_rows, room.start());
  if (nbytes == 0 || nbytes > bound) fail(codec, 0, "a chunk is empty or larger than its bound");
  if (!room.untouched_in_front()) fail(codec, 0, "the encoder wrote in front of its chunk");
  Buffer chunk(layout.place, nbytes, layout.alignment);
  copy(room.start(), chunk);
  if (!decode_on_all(codec, chunk, e, layout)) fail(codec, 0, "the encoder's chunk is refused");
  if (memcmp(e.start(), input.bytes, input.nbytes) != 0) fail(codec, 0, "other exponents come back than were encoded");
  return true;
}

}  // namespace

// Whether the input was accepted, for statistics.
bool run(const uint8_t* bytes, size_t nbytes) {
  Input input{bytes, nbytes};
  const size_t subject = input.number(1) % (2 * kCodecCount);
  const Layout layout(input.number(1));
  if (input.nbytes > kMostWeights) return false;
  const Codec& codec = kCodecs[subject / 2];
  return subject % 2 == 0 ? decode(codec, layout, input) : encode(codec, layout, input);
}

}  // namespace zipmoe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t nbytes) {
  zipmoe::fuzz::run(bytes, nbytes);
  return 0;
}
