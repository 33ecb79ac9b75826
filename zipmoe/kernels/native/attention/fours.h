// The order "fours" for any instruction set. Vectors hold numbers of a head. The kernel takes a few dozen tokens at a
// time, so that the values of these tokens stay in the first-level cache while all numbers are summed.
#ifndef ZIPMOE_KERNELS_ATTENTION_FOURS_H
#define ZIPMOE_KERNELS_ATTENTION_FOURS_H

#include "attention/math.h"

namespace zipmoe::attention {
namespace {

constexpr size_t kSums = 4;
constexpr size_t kTokensAtOnce = 64;

// `Isa` has Vector, kLanes, load, store, even and odd of 2 * kLanes bf16 numbers, all(float), the fused add_product,
// and add_rounded, which is not fused.
template <class Isa>
struct Fours {
  using Vector = typename Isa::Vector;
  static constexpr size_t kTile = 2 * Isa::kLanes;  // numbers
  static constexpr size_t kTileFloats = kSums * kTile;

  static size_t tiles(const Values& task) { return (task.numbers + kTile - 1) / kTile; }
  static size_t scratch_bytes(const Values& task) { return tiles(task) * kTileFloats * sizeof(float); }

  // Adds whole fours of tokens. Each sum has the even numbers first, then the odd numbers.
  static inline void add(const uint16_t* const* rows, const float* weights, size_t tokens, size_t number, float* sums) {
    Vector sum[2 * kSums];
    for (size_t i = 0; i < 2 * kSums; ++i) sum[i] = Isa::load(sums + i * Isa::kLanes);
    for (size_t t = 0; t < tokens; t += kSums) {
      for (size_t s = 0; s < kSums; ++s) {
        const Vector weight = Isa::all(weights[t + s]);
        sum[2 * s] = Isa::add_product(sum[2 * s], weight, Isa::even(rows[t + s] + number));
        sum[2 * s + 1] = Isa::add_product(sum[2 * s + 1], weight, Isa::odd(rows[t + s] + number));
      }
    }
    for (size_t i = 0; i < 2 * kSums; ++i) Isa::store(sums + i * Isa::kLanes, sum[i]);
  }

  static inline void add_last(const uint16_t* row, float weight, size_t number, float* sums) {
    Isa::store(sums, Isa::add_rounded(Isa::load(sums), Isa::all(weight), Isa::even(row + number)));
    float* odd = sums + Isa::kLanes;
    Isa::store(odd, Isa::add_rounded(Isa::load(odd), Isa::all(weight), Isa::odd(row + number)));
  }

  static void sum_group(const Values& task, size_t group, float* sums) {
    memset(sums, 0, scratch_bytes(task));
    const float* weights = task.weights + group * task.tokens;
    const size_t whole_tiles = task.numbers / kTile, whole = task.tokens / kSums * kSums;
    const size_t rest = task.numbers - whole_tiles * kTile;
    Tokens tokens(task, 0);
    for (size_t begin = 0; begin < task.tokens; begin += kTokensAtOnce) {
      const size_t count = task.tokens - begin < kTokensAtOnce ? task.tokens - begin : kTokensAtOnce;
      const size_t fours = begin + count <= whole ? count : whole - begin;
      const uint16_t* rows[kTokensAtOnce];
      float weight[kTokensAtOnce];
      for (size_t t = 0; t < count; ++t) {
        rows[t] = tokens.next();
        weight[t] = widen(round_to_bf16(weights[begin + t]));
      }
      for (size_t tile = 0; tile < whole_tiles; ++tile) {
        float* at = sums + tile * kTileFloats;
        add(rows, weight, fours, tile * kTile, at);
        for (size_t t = fours; t < count; ++t) add_last(rows[t], weight[t], tile * kTile, at);
      }
      if (rest == 0) continue;
      // The last numbers do not fill a tile: a padded copy avoids reads behind the row.
      float* at = sums + whole_tiles * kTileFloats;
      uint16_t copy[kTokensAtOnce][kTile];
      const uint16_t* copies[kTokensAtOnce];
      for (size_t t = 0; t < count; ++t) {
        memset(copy[t], 0, sizeof copy[t]);
        memcpy(copy[t], rows[t] + whole_tiles * kTile, rest * sizeof(uint16_t));
        copies[t] = copy[t];
      }
      add(copies, weight, fours, 0, at);
      for (size_t t = fours; t < count; ++t) add_last(copies[t], weight[t], 0, at);
    }
    uint16_t* out = task.out + group * task.numbers;
    for (size_t i = 0; i < task.numbers; ++i) {
      const float* of = sums + i / kTile * kTileFloats + i % 2 * Isa::kLanes + i % kTile / 2;
      out[i] = round_to_bf16(of[0] + of[kTile] + of[2 * kTile] + of[3 * kTile]);
    }
  }

  static void sum(const Values& task, void* scratch) {
    for (size_t group = 0; group < task.groups; ++group) sum_group(task, group, static_cast<float*>(scratch));
  }

  static constexpr Kernel kKernel = {scratch_bytes, sum};
};

}  // namespace
}  // namespace zipmoe::attention

#endif
