// Every native decoder on hostile chunks, and every native encoder on any exponents.
//
// Holds: a decoder ends with 0 or an error, and all backends agree on which; where it is 0 all of the output has been
// written, alike by all backends, and recovering is decompressing and merging; what an encoder writes fits its bound and
// decodes to what it was given.
#include "codecs.h"

#include "cascade/cascade.h"
#include "huffman/huffman.h"

namespace zipmoe::fuzz {

const Codec kCodecs[] = {
    {"cascade", zipmoe_cascade_decompress, zipmoe_cascade_recover, zipmoe_cascade_bound, zipmoe_cascade_compress},
    {"huffman", zipmoe_huffman_decompress, zipmoe_huffman_recover,
     [](size_t n, size_t, size_t) { return zipmoe_huffman_bound(n); },
     [](const uint8_t* e, size_t n, size_t cols, size_t, uint8_t* chunk) {
       return zipmoe_huffman_compress(e, n, cols, chunk);
     }},
};
const size_t kCodecCount = sizeof kCodecs / sizeof kCodecs[0];

namespace {

// Whether the first backend accepts the chunk; ends the process where another one differs. `e` gets the exponents.
bool decode_on_all(const Codec& codec, const Buffer& chunk, const Buffer& e, Layout layout) {
  const size_t n = e.nbytes();
  Buffer sm(layout.place, n, layout.alignment), merged(layout.place, 2 * n, layout.alignment);
  for (size_t i = 0; i < n; ++i) sm.start()[i] = static_cast<uint8_t>(i * 151 + 7);
  bool accepted = false;
  for (int backend = 0; backend < zipmoe_backend_count(); ++backend) {
    const auto holds = [&](bool held, const char* what) { claim(held, codec.name, backend, what); };
    Buffer exponents(layout.place, n, layout.alignment), bf16(layout.place, 2 * n, layout.alignment);
    blank(exponents, backend);
    blank(bf16, backend);
    const int decompressed = codec.decompress(backend, chunk.start(), chunk.nbytes(), exponents.start(), n);
    const int recovered = codec.recover(backend, chunk.start(), chunk.nbytes(), sm.start(), bf16.start(), n);
    holds(decompressed <= 0 && recovered <= 0, "a result is above 0");
    holds((decompressed == 0) == (recovered == 0), "decompressing and recovering differ on whether the chunk is sound");
    holds(exponents.untouched_in_front() && bf16.untouched_in_front(), "bytes in front of an output were written");
    if (backend == 0 && decompressed == 0) {
      accepted = true;
      copy(exponents.start(), e);
      zipmoe_merge_planes(zipmoe_backend_count() - 1, sm.start(), e.start(), merged.start(), n);
    }
    holds((decompressed == 0) == accepted, "another backend differs on whether the chunk is sound");
    holds(!accepted || same(exponents, e), "another backend has other exponents");
    holds(!accepted || same(bf16, merged), "weights are not exponents and sm bytes merged");
  }
  return accepted;
}

}  // namespace

bool decode(const Codec& codec, Layout layout, Input input) {
  const size_t n = input.number(3) % (layout.most_weights + 1);
  Buffer chunk(layout.place, input.nbytes, layout.alignment), e(Place::kHeap, n, 0);
  copy(input.bytes, chunk);
  const bool accepted = decode_on_all(codec, chunk, e, layout);
  claim(input.nbytes == 0 || memcmp(chunk.start(), input.bytes, input.nbytes) == 0, codec.name, 0, "the chunk was written");
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
  claim(nbytes > 0 && nbytes <= bound, codec.name, 0, "a chunk is empty or larger than its bound");
  claim(room.untouched_in_front(), codec.name, 0, "the encoder wrote in front of its chunk");
  Buffer chunk(layout.place, nbytes, layout.alignment);
  copy(room.start(), chunk);
  claim(decode_on_all(codec, chunk, e, layout), codec.name, 0, "the encoder's chunk is refused");
  claim(same(e, plane), codec.name, 0, "other exponents come back than were encoded");
  return true;
}

}  // namespace zipmoe::fuzz
