// In-memory forms: the product and the recovery of a hostile matrix, and the encoder on any weights and on their chunks.
//
// Holds on every backend: a product and the recovery end with 0 or an error, and agree on which; where they accept, the
// outputs are those of the linear on the recovered weights; what an encoder writes fits its bound and is what it was given;
// weights and their chunk become the same bytes, on all backends; a backend without the form refuses.
#include "forms.h"

#include "cascade/cascade.h"
#include "linear/linear.h"
#include "nibble/nibble.h"
#include "tile/tile.h"

namespace zipmoe::fuzz {

const Form kForms[kFormCount] = {
    {"tile form", zipmoe_tile_is_supported, zipmoe_tile_bound, zipmoe_tile_from_cascade, zipmoe_tile_from_bf16,
     zipmoe_tile_to_bf16, zipmoe_tile_linear, linear::kPairs},
    {"nibble form", zipmoe_nibble_is_supported, zipmoe_nibble_bound, zipmoe_nibble_from_cascade, zipmoe_nibble_from_bf16,
     zipmoe_nibble_to_bf16, zipmoe_nibble_linear, linear::kLanes},
};

namespace {

constexpr size_t kMostInputRows = 20, kMostRows = 70, kMostInputs = 1100;
constexpr size_t kBlock = 96, kParts = 2;  // of the order "pairs": its blocks end within those of a tile

uint16_t* words(const Buffer& buffer) { return reinterpret_cast<uint16_t*>(buffer.start()); }

bool is_nan(uint16_t bf16) { return (bf16 & 0x7fff) > 0x7f80; }

bool outputs_hold(const Buffer& out, const Buffer& expected) {
  for (size_t i = 0; i < out.nbytes() / 2; ++i) {
    if (words(out)[i] != words(expected)[i] && !(is_nan(words(out)[i]) && is_nan(words(expected)[i]))) return false;
  }
  return true;
}

}  // namespace

bool compute_form(const Form& form, Layout layout, Input input) {
  const size_t kind = input.number(1);
  const size_t threads = kind & 0x80 ? 2 : 1, m = 1 + (kind & 0x7f) % kMostInputRows;
  const size_t n = 1 + input.number(1) % kMostRows, k = 1 + input.number(2) % kMostInputs;
  layout.alignment &= ~size_t{1};  // bf16 numbers are aligned to their size
  Buffer matrix(layout.place, input.nbytes, layout.alignment), x(layout.place, 2 * m * k, layout.alignment);
  copy(input.bytes, matrix);
  for (size_t i = 0; i < m * k; ++i) {
    words(x)[i] = static_cast<uint16_t>((i * 40503 & 0x8000) | (100 + i * 7 % 60) << 7 | (i * 29 & 0x7f));
  }
  Buffer first(Place::kHeap, 2 * n * k, 0);
  bool accepted = false, is_first = true;
  for (int backend = 0; backend < zipmoe_backend_count(); ++backend) {
    const auto holds = [&](bool held, const char* what) { claim(held, form.name, backend, what); };
    if (!form.is_supported(backend)) {
      holds(form.to_bf16(backend, matrix.start(), matrix.nbytes(), n, k, nullptr) == -1,
            "a backend without the form recovers weights");
      continue;
    }
    Buffer weight(layout.place, 2 * n * k, layout.alignment), out(layout.place, 2 * m * n, layout.alignment);
    blank(out, backend);
    const int recovered = form.to_bf16(backend, matrix.start(), matrix.nbytes(), n, k, words(weight));
    const int computed = form.linear(backend, words(x), matrix.start(), matrix.nbytes(), nullptr, words(out), m, n, k,
                                     kBlock, kParts, threads);
    holds(recovered <= 0 && computed <= 0, "a result is above 0");
    holds((recovered == 0) == (computed == 0), "computing and recovering differ on whether the matrix is sound");
    holds(is_first || (recovered == 0) == accepted, "backends differ on whether the matrix is sound");
    holds(weight.untouched_in_front() && out.untouched_in_front(), "bytes in front of an output were written");
    holds(input.nbytes == 0 || memcmp(matrix.start(), input.bytes, input.nbytes) == 0, "the matrix was written");
    accepted = recovered == 0;
    if (accepted) {
      if (is_first) copy(weight.start(), first);
      holds(same(weight, first), "backends recover different weights");
      Buffer expected(Place::kHeap, 2 * m * n, 0);
      zipmoe_linear(backend, form.order, words(x), words(weight), nullptr, words(expected), m, n, k, kBlock, kParts, 1);
      holds(outputs_hold(out, expected), "outputs are not those of the recovered weights");
    }
    is_first = false;
  }
  return accepted;
}

bool make_form(const Form& form, Layout layout, Input input) {
  const size_t n = 1 + input.number(1) % kMostRows, k = 1 + input.number(2) % kMostInputs;
  layout.alignment &= ~size_t{1};
  Buffer weight(layout.place, 2 * n * k, layout.alignment);
  for (size_t i = 0; i < weight.nbytes(); ++i) weight.start()[i] = input.nbytes > 0 ? input.bytes[i % input.nbytes] : 0;
  Buffer sm(layout.place, n * k, layout.alignment), e(Place::kHeap, n * k, 0);
  zipmoe_split_planes(0, weight.start(), sm.start(), e.start(), n * k);
  Buffer room(Place::kHeap, zipmoe_cascade_bound(n * k, k, 16), 0);
  const size_t chunk_bytes = zipmoe_cascade_compress(e.start(), n * k, k, 16, room.start());
  Buffer chunk(layout.place, chunk_bytes, layout.alignment);
  copy(room.start(), chunk);
  Buffer first(Place::kHeap, form.bound(n, k), 0);
  size_t first_bytes = 0;
  for (int backend = 0; backend < zipmoe_backend_count(); ++backend) {
    if (!form.is_supported(backend)) continue;
    const auto holds = [&](bool held, const char* what) { claim(held, form.name, backend, what); };
    Buffer matrix(layout.place, form.bound(n, k), layout.alignment), more(Place::kHeap, matrix.nbytes(), 0);
    Buffer again(layout.place, 2 * n * k, layout.alignment);
    size_t nbytes = 0, more_nbytes = 0;
    holds(form.from_bf16(backend, words(weight), n, k, matrix.start(), matrix.nbytes(), &nbytes) == 0, "weights were refused");
    holds(nbytes <= matrix.nbytes() && matrix.untouched_in_front(), "the bound was left");
    holds(form.to_bf16(backend, matrix.start(), nbytes, n, k, words(again)) == 0, "what was encoded is refused");
    holds(same(weight, again), "what was encoded is not what was given");
    const zipmoe_part part = {chunk.start(), chunk_bytes, sm.start(), n};
    holds(form.from_cascade(backend, &part, 1, n, k, more.start(), more.nbytes(), &more_nbytes) == 0, "a chunk was refused");
    holds(more_nbytes == nbytes && memcmp(more.start(), matrix.start(), nbytes) == 0, "a chunk becomes other bytes");
    if (first_bytes == 0) memcpy(first.start(), matrix.start(), first_bytes = nbytes);
    holds(nbytes == first_bytes && memcmp(first.start(), matrix.start(), nbytes) == 0, "backends write different bytes");
  }
  return first_bytes > 0;
}

}  // namespace zipmoe::fuzz
