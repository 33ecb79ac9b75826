// Tile form: the product and the recovery of a hostile matrix, and the encoder on any weights and on their chunks.
//
// Holds: a product and the recovery end with 0 or an error, and agree on which; where they accept, the outputs are those
// of the linear on the recovered weights; what an encoder writes fits its bound and is what it was given; weights and
// their chunk become the same bytes; a backend without tile form refuses.
#include "tiles.h"

#include "cascade/cascade.h"
#include "linear/linear.h"
#include "tile/tile.h"

namespace zipmoe::fuzz {
namespace {

constexpr size_t kMostInputRows = 20, kMostRows = 70, kMostInputs = 1100;
constexpr size_t kBlock = 96, kParts = 2;  // of the order: its blocks end within those of a tile

uint16_t* words(const Buffer& buffer) { return reinterpret_cast<uint16_t*>(buffer.start()); }

bool is_nan(uint16_t bf16) { return (bf16 & 0x7fff) > 0x7f80; }

bool outputs_hold(const Buffer& out, const Buffer& expected) {
  for (size_t i = 0; i < out.nbytes() / 2; ++i) {
    if (words(out)[i] != words(expected)[i] && !(is_nan(words(out)[i]) && is_nan(words(expected)[i]))) return false;
  }
  return true;
}

void refuse_where_unsupported(const Buffer& tiles, size_t n, size_t k) {
  for (int backend = 0; backend < zipmoe_backend_count(); ++backend) {
    if (zipmoe_tile_is_supported(backend)) continue;
    claim(zipmoe_tile_to_bf16(backend, tiles.start(), tiles.nbytes(), n, k, nullptr) == -1, "tile form", backend,
          "a backend without tile form recovers weights");
  }
}

}  // namespace

bool compute_tiles(Layout layout, Input input) {
  const size_t kind = input.number(1);
  const size_t threads = kind & 0x80 ? 2 : 1, m = 1 + (kind & 0x7f) % kMostInputRows;
  const size_t n = 1 + input.number(1) % kMostRows, k = 1 + input.number(2) % kMostInputs;
  layout.alignment &= ~size_t{1};  // bf16 numbers are aligned to their size
  Buffer tiles(layout.place, input.nbytes, layout.alignment), x(layout.place, 2 * m * k, layout.alignment);
  copy(input.bytes, tiles);
  for (size_t i = 0; i < m * k; ++i) {
    words(x)[i] = static_cast<uint16_t>((i * 40503 & 0x8000) | (100 + i * 7 % 60) << 7 | (i * 29 & 0x7f));
  }
  refuse_where_unsupported(tiles, n, k);
  if (!zipmoe_tile_is_supported(0)) return false;
  const auto holds = [&](bool held, const char* what) { claim(held, "tile form", 0, what); };
  Buffer weight(layout.place, 2 * n * k, layout.alignment), out(layout.place, 2 * m * n, layout.alignment);
  blank(out, 0);
  const int recovered = zipmoe_tile_to_bf16(0, tiles.start(), tiles.nbytes(), n, k, words(weight));
  const int computed = zipmoe_tile_linear(0, words(x), tiles.start(), tiles.nbytes(), nullptr, words(out), m, n, k, kBlock,
                                          kParts, threads);
  holds(recovered <= 0 && computed <= 0, "a result is above 0");
  holds((recovered == 0) == (computed == 0), "computing and recovering differ on whether the matrix is sound");
  holds(weight.untouched_in_front() && out.untouched_in_front(), "bytes in front of an output were written");
  holds(input.nbytes == 0 || memcmp(tiles.start(), input.bytes, input.nbytes) == 0, "the matrix was written");
  if (recovered != 0) return false;
  Buffer expected(Place::kHeap, 2 * m * n, 0);
  zipmoe_linear(0, linear::kPairs, words(x), words(weight), nullptr, words(expected), m, n, k, kBlock, kParts, 1);
  holds(outputs_hold(out, expected), "outputs are not those of the recovered weights");
  return true;
}

bool make_tiles(Layout layout, Input input) {
  const size_t n = 1 + input.number(1) % kMostRows, k = 1 + input.number(2) % kMostInputs;
  if (!zipmoe_tile_is_supported(0)) return false;
  const auto holds = [&](bool held, const char* what) { claim(held, "encoder of tile form", 0, what); };
  layout.alignment &= ~size_t{1};
  Buffer weight(layout.place, 2 * n * k, layout.alignment), again(layout.place, 2 * n * k, layout.alignment);
  for (size_t i = 0; i < weight.nbytes(); ++i) weight.start()[i] = input.nbytes > 0 ? input.bytes[i % input.nbytes] : 0;
  Buffer tiles(layout.place, zipmoe_tile_bound(n, k), layout.alignment), more(Place::kHeap, tiles.nbytes(), 0);
  size_t nbytes = 0, more_nbytes = 0;
  holds(zipmoe_tile_from_bf16(0, words(weight), n, k, tiles.start(), tiles.nbytes(), &nbytes) == 0, "weights were refused");
  holds(nbytes <= tiles.nbytes() && tiles.untouched_in_front(), "the bound was left");
  holds(zipmoe_tile_to_bf16(0, tiles.start(), nbytes, n, k, words(again)) == 0, "what was encoded is refused");
  holds(same(weight, again), "what was encoded is not what was given");
  Buffer sm(layout.place, n * k, layout.alignment), e(Place::kHeap, n * k, 0);
  zipmoe_split_planes(0, weight.start(), sm.start(), e.start(), n * k);
  Buffer room(Place::kHeap, zipmoe_cascade_bound(n * k, k, 16), 0);
  const size_t chunk_bytes = zipmoe_cascade_compress(e.start(), n * k, k, 16, room.start());
  Buffer chunk(layout.place, chunk_bytes, layout.alignment);
  copy(room.start(), chunk);
  const zipmoe_tile_part part = {chunk.start(), chunk_bytes, sm.start(), n};
  holds(zipmoe_tile_from_cascade(0, &part, 1, n, k, more.start(), more.nbytes(), &more_nbytes) == 0, "a chunk was refused");
  holds(more_nbytes == nbytes && memcmp(more.start(), tiles.start(), nbytes) == 0, "a chunk becomes other bytes");
  return true;
}

}  // namespace zipmoe::fuzz
