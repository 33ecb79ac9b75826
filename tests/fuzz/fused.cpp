// The linear whose weights are a hostile chunk.
//
// Holds: it ends with 0 or an error; it accepts what recovering accepts, as far as its rows are those of the matrix; where
// it accepts, its outputs are those of the linear on the recovered weights, on every backend; no other output is touched.
#include "fused.h"

#include "cascade/cascade.h"
#include "linear/linear.h"

namespace zipmoe::fuzz {
namespace {

constexpr size_t kMostInputRows = 20, kMostRows = 40, kMostInputs = 300;
constexpr size_t kBefore = 1, kBehind = 2;  // outputs of other chunks
constexpr int kOtherRows = -4;

uint16_t* words(const Buffer& buffer) { return reinterpret_cast<uint16_t*>(buffer.start()); }

bool is_nan(uint16_t bf16) { return (bf16 & 0x7fff) > 0x7f80; }

struct Sizes {
  int order;
  size_t threads, m, rows, k;
  size_t n() const { return kBefore + rows + kBehind; }
};

// Numbers of both signs and many magnitudes, finite.
void fill_inputs(const Buffer& x) {
  for (size_t i = 0; i < x.nbytes() / 2; ++i) {
    words(x)[i] = static_cast<uint16_t>((i * 40503 & 0x8000) | (100 + i * 7 % 60) << 7 | (i * 29 & 0x7f));
  }
}

bool outputs_hold(const Sizes& sizes, const Buffer& out, const Buffer& untouched, const Buffer& expected) {
  for (size_t row = 0; row < sizes.m; ++row) {
    for (size_t column = 0; column < sizes.n(); ++column) {
      const bool mine = column >= kBefore && column < kBefore + sizes.rows;
      const uint16_t is = words(out)[row * sizes.n() + column];
      const uint16_t should_be = mine ? words(expected)[row * sizes.rows + column - kBefore]
                                      : words(untouched)[row * sizes.n() + column];
      if (is != should_be && !(mine && is_nan(is) && is_nan(should_be))) return false;
    }
  }
  return true;
}

}  // namespace

bool compute_fused(Layout layout, Input input) {
  const size_t kind = input.number(1);
  Sizes sizes;
  sizes.order = kind & 1;
  sizes.threads = kind & 2 ? 2 : 1;
  sizes.m = 1 + input.number(1) % kMostInputRows;
  sizes.rows = 1 + input.number(1) % kMostRows;
  sizes.k = 1 + input.number(2) % kMostInputs;
  const size_t weights = sizes.rows * sizes.k, k_block = 64;
  layout.alignment &= ~size_t{1};  // bf16 numbers are aligned to their size

  Buffer chunk(layout.place, input.nbytes, layout.alignment), sm(layout.place, weights, layout.alignment);
  Buffer x(layout.place, 2 * sizes.m * sizes.k, layout.alignment), recovered(Place::kHeap, 2 * weights, 0);
  copy(input.bytes, chunk);
  fill_inputs(x);
  for (size_t i = 0; i < weights; ++i) sm.start()[i] = static_cast<uint8_t>(i * 151 + 7);
  const int scalar = zipmoe_backend_count() - 1;
  const bool sound = zipmoe_cascade_recover(scalar, chunk.start(), chunk.nbytes(), sm.start(), recovered.start(), weights) == 0;
  Buffer expected(Place::kHeap, 2 * sizes.m * sizes.rows, 0);
  if (sound) {
    zipmoe_linear(scalar, sizes.order, words(x), words(recovered), nullptr, words(expected), sizes.m, sizes.rows, sizes.k,
                  k_block, 1, 1);
  }
  bool accepted = false;
  for (int backend = 0; backend <= scalar; ++backend) {
    const auto holds = [&](bool held, const char* what) { claim(held, "fused linear", backend, what); };
    Buffer out(layout.place, 2 * sizes.m * sizes.n(), layout.alignment), untouched(Place::kHeap, out.nbytes(), 0);
    blank(out, backend);
    blank(untouched, backend);
    const zipmoe_part rows = {chunk.start(), chunk.nbytes(), sm.start(), sizes.rows};
    const int result = zipmoe_linear_cascade(backend, sizes.order, words(x), &rows, 1, nullptr, words(out), sizes.m,
                                             sizes.n(), sizes.k, k_block, 1, kBefore, sizes.threads);
    holds(result <= 0, "a result is above 0");
    holds(result != kOtherRows || same(out, untouched), "outputs were written for rows of another length");
    holds(result == kOtherRows || (result == 0) == sound, "computing and recovering differ on whether the chunk is sound");
    holds(out.untouched_in_front(), "bytes in front of the outputs were written");
    holds(result != 0 || outputs_hold(sizes, out, untouched, expected), "outputs are not those of the recovered weights");
    holds(backend == 0 || (result == 0) == accepted, "another backend differs on whether the chunk is sound");
    accepted = result == 0;
  }
  return accepted;
}

}  // namespace zipmoe::fuzz
