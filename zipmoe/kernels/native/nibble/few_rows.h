// Products of a tile of nibble form with up to kTileRows rows of x. V is as for nibble/product.h.
//
// Each group is multiplied as it is decoded, once for all vectors of a pass that are multiplied together: decoding takes fewer
// instructions than multiplying. A group with exceptions, and inputs that are not coded, are first widened to memory.
#ifndef ZIPMOE_KERNELS_NIBBLE_FEW_ROWS_H
#define ZIPMOE_KERNELS_NIBBLE_FEW_ROWS_H

#include "nibble/weights.h"

namespace zipmoe::nibble {
namespace {

constexpr size_t kGroupsAnException = 4;  // with more exceptions the whole pass is widened

template <class V>
struct FewRows {
  using Vector = typename V::Vector;
  using Weights = nibble::Weights<V>;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kPassVectors = Weights::kPassVectors;
  static constexpr size_t kGroupVectors = Weights::kGroupVectors;

  // Inputs of a pass: vectors of a step are `next_vector` floats apart; a vector of a step has R rows.
  struct Inputs {
    const float* x;
    size_t next_vector;
  };

  // Steps of a pass that are widened in memory.
  struct Wide {
    const float* at;

    inline __attribute__((always_inline)) void next(Vector* w) {
      for (size_t i = 0; i < kOutputs * kPassVectors; ++i, at += W) w[i] = V::load(at);
    }
  };

  // Groups of a pass without exceptions.
  struct Coded {
    const uint8_t* at;
    typename V::Tables tables;

    inline __attribute__((always_inline)) void next(Vector* w) {
      Weights::prefetch(at + kAhead);
      V::widen(at, tables, w);
      at += kGroupBytes;
    }
  };

  // Adds the products of some steps to `count` vectors of sums, from vector `first` of the pass on.
  template <size_t R, size_t first, size_t count, size_t steps_at_once, class Source>
  static void add_vectors(Source weights, size_t steps, Inputs inputs, float* sums) {
    Vector sum[R][kOutputs][count];
    each<R, count>([&](size_t r, size_t output, size_t v) { sum[r][output][v] = V::load(at(sums, r, output, first + v)); });
    const float* x = inputs.x + first * inputs.next_vector;
    for (; steps > 0; steps -= steps_at_once, x += steps_at_once * R * W) {
      Vector w[kGroupVectors];
      weights.next(w);
#pragma GCC unroll 2
      for (size_t step = 0; step < steps_at_once; ++step) {
        Vector input[R][count];
        each<R, count>([&](size_t r, size_t output, size_t v) __attribute__((always_inline)) {
          if (output == 0) input[r][v] = V::keep(V::load(x + v * inputs.next_vector + (step * R + r) * W));
          const Vector weight = w[(step * kOutputs + output) * kPassVectors + first + v];
          sum[r][output][v] = V::multiply_add(input[r][v], weight, sum[r][output][v]);
        });
      }
    }
    each<R, count>([&](size_t r, size_t output, size_t v) { V::store(at(sums, r, output, first + v), sum[r][output][v]); });
  }

  // Adds all vectors of a pass.
  template <size_t R, size_t steps_at_once, class Source, size_t first = 0>
  static void add(const Source& weights, size_t steps, const Inputs& inputs, float* sums) {
    constexpr size_t count = V::template kTogether<R>;
    add_vectors<R, first, count, steps_at_once>(weights, steps, inputs, sums);
    if constexpr (first + count < kPassVectors) {
      add<R, steps_at_once, Source, first + count>(weights, steps, inputs, sums);
    }
  }

  // Adds groups [begin, end), of which none has an exception.
  template <size_t R>
  static void add_groups(const Tile& tile, size_t pass, size_t begin, size_t end, const Inputs& inputs, float* sums) {
    if (begin == end) return;
    const Coded weights = {tile.groups[pass] + begin * kGroupBytes, V::tables(tile.tables)};
    const float* x = inputs.x + begin * kGroupSteps * R * W;
    add<R, kGroupSteps>(weights, (end - begin) * kGroupSteps, {x, inputs.next_vector}, sums);
  }

  // Adds steps [begin, end), of which at most kBlockSteps are widened at a time.
  template <size_t R>
  static void add_steps(const Tile& tile, size_t k, size_t pass, size_t begin, size_t end, const Inputs& inputs,
                        float* wide, float* sums) {
    for (; begin < end; begin += kBlockSteps) {
      const size_t some = std::min(kBlockSteps, end - begin);
      Weights::widen(tile, k, pass, begin, begin + some, kAhead, wide);
      add<R, 1>(Wide{wide}, some, {inputs.x + begin * R * W, inputs.next_vector}, sums);
    }
  }

  template <size_t R>
  static void add_pass(const Tile& tile, size_t k, size_t pass, const Inputs& inputs, float* wide, float* sums) {
    const size_t steps = k / kLanes, count = tile.exceptions[pass];
    size_t done = 0;  // groups
    if (count <= tile.coded / kGroupsAnException) {
      const uint8_t* listed = tile.listed[pass];
      for (size_t i = 0; i < count; ++i, listed += kExceptionBytes) {
        const size_t group = Exception(listed).place / kGroup;
        if (group < done) continue;
        add_groups<R>(tile, pass, done, group, inputs, sums);
        add_steps<R>(tile, k, pass, group * kGroupSteps, (group + 1) * kGroupSteps, inputs, wide, sums);
        done = group + 1;
      }
      add_groups<R>(tile, pass, done, tile.coded, inputs, sums);
      done = tile.coded;
    }
    add_steps<R>(tile, k, pass, done * kGroupSteps, steps, inputs, wide, sums);
  }

  static inline float* at(float* sums, size_t row, size_t output, size_t v) {
    return sums + ((row * kOutputs + output) * kPassVectors + v) * W;
  }

  // Calls act(row, output, vector), unrolled.
  template <size_t R, size_t count, class Act>
  static inline __attribute__((always_inline)) void each(Act&& act) {
#pragma GCC unroll 4
    for (size_t v = 0; v < count; ++v) {
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (size_t output = 0; output < kOutputs; ++output) act(r, output, v);
      }
    }
  }

  using AddPass = void (*)(const Tile&, size_t k, size_t pass, const Inputs&, float* wide, float* sums);

  template <size_t R>
  static AddPass add_pass_of(size_t rows) {
    if constexpr (R > 1) {
      if (rows < R) return add_pass_of<R - 1>(rows);
    }
    return add_pass<R>;
  }
};

}  // namespace
}  // namespace zipmoe::nibble

#endif
