// Products from nibble form on one instruction set. V is an instruction set of linear/lanes.h whose kStreamRows is 0, and
// offers in addition, with kPassVectors = 16 / kLanes vectors of lanes a pass, in the order of linear/lanes.h:
//   kTogether<R>           vectors of a pass that are multiplied by R rows of x together, as registers allow
//   Tables tables(bytes)   the tables of a tile, for `widen`
//   void widen(group, tables, w)  widens a group: w[(step * kOutputs + output) * kPassVectors + vector]
//
// Up to kTileRows rows of x multiply each group as it is decoded, once for all vectors of a pass that are multiplied
// together: decoding takes fewer instructions than multiplying. A group with exceptions, and inputs that are not coded, are
// first widened to memory. For more rows, some steps of a few tiles are widened to memory that stays in the first-level
// cache, and serve one tile of rows after the other.
#ifndef ZIPMOE_KERNELS_NIBBLE_PRODUCT_H
#define ZIPMOE_KERNELS_NIBBLE_PRODUCT_H

#include <algorithm>

#include "linear/lanes.h"
#include "nibble/nibble.h"

namespace zipmoe::nibble {
namespace {

constexpr size_t kBlockSteps = 32;                       // that are widened at a time
constexpr size_t kStepFloats = kOutputs * kPassLanes;    // of a pass
constexpr size_t kWideFloats = kBlockSteps * kStepFloats;  // of a tile
constexpr size_t kPanelTiles = 3;                        // whose outputs make whole columns
constexpr size_t kColumn = 3;                            // outputs that share an input
constexpr size_t kTileSums = kOutputs * kLanes;          // floats, for each row of x
constexpr size_t kAhead = 8192;                          // bytes that are prefetched to the second-level cache
constexpr size_t kCacheLine = 64;
constexpr size_t kGroupsAnException = 4;  // with more exceptions the whole pass is widened

template <class V>
struct Product {
  using Vector = typename V::Vector;
  using Lanes = linear::Lanes<V>;
  using RowTiles = typename Lanes::Tiles;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kPassVectors = kPassLanes / W;
  static constexpr size_t kVectors = kLanes / W;
  static constexpr size_t kGroupVectors = kGroupSteps * kOutputs * kPassVectors;

  static bool widens(size_t m) { return m > V::kTileRows; }

  // First the widened weights, then the sums: pass, tile, row of x, output, lane.
  static size_t scratch_bytes(size_t m, size_t) { return kPanelTiles * (kWideFloats + m * kTileSums) * sizeof(float); }

  // --- weights ------------------------------------------------------------------------------------------------------

  // Always inline: compilers take a function that only prefetches for one without effect, and drop its calls.
  static inline __attribute__((always_inline)) void prefetch(const uint8_t* at) {
    __builtin_prefetch(at, 0, 2);
    __builtin_prefetch(at + kCacheLine, 0, 2);
  }

  // Widens steps [begin, end) of a pass; `begin` is even.
  static void widen(const Tile& tile, size_t k, size_t pass, size_t begin, size_t end, size_t ahead, float* wide) {
    const size_t coded = std::max(begin, std::min(end, tile.coded * kGroupSteps));
    const typename V::Tables tables = V::tables(tile.tables);
    const uint8_t* group = tile.groups[pass] + begin / kGroupSteps * kGroupBytes;
    float* to = wide;
    for (size_t step = begin; step < coded; step += kGroupSteps, group += kGroupBytes) {
      prefetch(group + ahead);
      Vector w[kGroupVectors];
      V::widen(group, tables, w);
      for (const Vector& each : w) {
        V::store(to, each);
        to += W;
      }
    }
    patch(tile, pass, begin, coded, wide);
    const size_t first = tile.coded * kGroupInputs;
    for (size_t step = coded; step < end; ++step) {
      for (size_t output = 0; output < kOutputs; ++output) {
        const size_t input = output * (k - first) + step * kLanes - first + pass * kPassLanes;
        const uint16_t* from = reinterpret_cast<const uint16_t*>(tile.rest) + input;
        for (size_t i = 0; i < kPassVectors; i += 2, from += 2 * W, to += 2 * W) {
          V::store(to, V::even(from));
          V::store(to + W, V::odd(from));
        }
      }
    }
  }

  // Puts the exceptions of steps [begin, end).
  static void patch(const Tile& tile, size_t pass, size_t begin, size_t end, float* wide) {
    const uint8_t* listed = tile.listed[pass];
    for (size_t i = 0; i < tile.exceptions[pass]; ++i, listed += kExceptionBytes) {
      const Exception exception(listed);
      const size_t input = input_of(exception.place % kGroup, 0);
      const size_t step = exception.place / kGroup * kGroupSteps + input / kLanes, lane = input % kLanes;
      if (step < begin || step >= end) continue;
      // Of each 2 W lanes first the even, then the odd ones.
      const size_t place = lane / (2 * W) * 2 * W + lane % 2 * W + lane % (2 * W) / 2;
      float* weight = wide + (step - begin) * kStepFloats + output_of(exception.place % kGroup) * kPassLanes + place;
      uint32_t bits;
      memcpy(&bits, weight, sizeof bits);
      bits = (bits & 0x00ff0000) | uint32_t{exception.high} << 24;
      memcpy(weight, &bits, sizeof bits);
    }
  }

  // --- sums of a tile and R rows of x ---------------------------------------------------------------------------------

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
      prefetch(at + kAhead);
      V::widen(at, tables, w);
      at += kGroupBytes;
    }
  };

  // Adds the products of some steps to `count` vectors of sums, from vector `first` of the pass on.
  template <size_t R, size_t first, size_t count, size_t steps_at_once, class Weights>
  static void add_vectors(Weights weights, size_t steps, Inputs inputs, float* sums) {
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
  template <size_t R, size_t steps_at_once, class Weights, size_t first = 0>
  static void add(const Weights& weights, size_t steps, const Inputs& inputs, float* sums) {
    constexpr size_t count = V::template kTogether<R>;
    add_vectors<R, first, count, steps_at_once>(weights, steps, inputs, sums);
    if constexpr (first + count < kPassVectors) {
      add<R, steps_at_once, Weights, first + count>(weights, steps, inputs, sums);
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
      widen(tile, k, pass, begin, begin + some, kAhead, wide);
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

  // --- panels -------------------------------------------------------------------------------------------------------

  struct Panel {
    const linear::Task& task;
    const float* x;
    float *wide, *sums;
    size_t most;  // tiles
    Tile tiles[kPanelTiles];
    size_t count;

    float* wide_of(size_t tile) const { return wide + tile * kWideFloats; }
    float* sums_of(size_t pass, size_t tile, size_t row) const {
      return sums + ((pass * most + tile) * task.m + row) * kOutputs * kPassLanes;
    }
  };

  // Few rows of x: one tile of weights.
  static void add_few(const Panel& panel) {
    const size_t m = panel.task.m, k = panel.task.k, next_vector = k / kLanes * m * W;
    const AddPass add_rows = add_pass_of<V::kTileRows>(m);
    const float* x = panel.x;
    for (size_t pass = 0; pass < kPasses; ++pass, x += kPassVectors * next_vector) {
      add_rows(panel.tiles[0], k, pass, {x, next_vector}, panel.wide, panel.sums_of(pass, 0, 0));
    }
  }

  // Adds the products of one vector of lanes of a column of widened weights.
  template <size_t R>
  static void add_column(const float* const* wide, size_t steps, const float* x, float* const* sums) {
    Vector sum[R][kColumn];
    Lanes::template each<R, kColumn>([&](size_t r, size_t n) { sum[r][n] = V::load(sums[n] + r * kOutputs * kPassLanes); });
    for (size_t at = 0; at < steps * kStepFloats; at += kStepFloats, x += R * W) {
      Vector w[kColumn], input[R];
      for (size_t n = 0; n < kColumn; ++n) w[n] = V::load(wide[n] + at);
      Lanes::template each<R, kColumn>([&](size_t r, size_t n) __attribute__((always_inline)) {
        if (n == 0) input[r] = V::keep(V::load(x + r * W));
        sum[r][n] = V::multiply_add(input[r], w[n], sum[r][n]);
      });
    }
    Lanes::template each<R, kColumn>([&](size_t r, size_t n) { V::store(sums[n] + r * kOutputs * kPassLanes, sum[r][n]); });
  }

  using AddColumn = void (*)(const float* const*, size_t, const float*, float* const*);

  template <size_t R>
  static AddColumn add_column_of(size_t rows) {
    if constexpr (R > 1) {
      if (rows < R) return add_column_of<R - 1>(rows);
    }
    return add_column<R>;
  }

  // Adds steps [begin, end) of a pass, which have been widened, for a tile of rows of x.
  static void add_block(const Panel& panel, size_t pass, size_t begin, size_t end, size_t first, size_t rows) {
    const size_t steps = panel.task.k / kLanes;
    const AddColumn add_rows = add_column_of<V::kTileRows>(rows);
    for (size_t v = 0; v < kPassVectors; ++v) {
      const float* x = panel.x + (first * kVectors + (pass * kPassVectors + v) * rows) * steps * W + begin * rows * W;
      for (size_t column = 0; column < panel.count * kOutputs; column += kColumn) {
        const float* wide[kColumn];
        float* sums[kColumn];  // those of missing tiles are not used
        for (size_t n = 0; n < kColumn; ++n) {
          const size_t tile = (column + n) / kOutputs, lanes = (column + n) % kOutputs * kPassLanes + v * W;
          wide[n] = panel.wide_of(tile < panel.count ? tile : 0) + lanes;
          sums[n] = panel.sums_of(pass, tile, first) + lanes;
        }
        add_rows(wide, end - begin, x, sums);
      }
    }
  }

  static void add_many(const Panel& panel) {
    static_assert(kPanelTiles * kOutputs % kColumn == 0);
    const size_t k = panel.task.k, steps = k / kLanes;
    const size_t ahead = kPanelTiles * Shape{panel.task.n, k}.coded_bytes(0);  // about the next panel's
    const RowTiles rows(panel.task.m);
    for (size_t pass = 0; pass < kPasses; ++pass) {
      for (size_t begin = 0; begin < steps; begin += kBlockSteps) {
        const size_t end = std::min(begin + kBlockSteps, steps);
        for (size_t t = 0; t < panel.count; ++t) widen(panel.tiles[t], k, pass, begin, end, ahead, panel.wide_of(t));
        for (size_t r = 0; r < rows.count; ++r) add_block(panel, pass, begin, end, rows.first(r), rows.rows(r));
      }
    }
  }

  // Folds the lanes of an output: returns the last even and odd vector.
  static void halve(const Panel& panel, size_t tile, size_t row, size_t output, Vector* even, Vector* odd) {
    Vector sum[kVectors];
    for (size_t i = 0; i < kVectors; ++i) {
      sum[i] = V::load(at(panel.sums_of(i / kPassVectors, tile, row), 0, output, i % kPassVectors));
    }
    for (size_t half = kVectors / 2; half > 1; half /= 2) {
      for (size_t v = 0; v < half; ++v) sum[v] = V::add(sum[v], sum[v + half]);
    }
    *even = sum[0];
    *odd = sum[1];
  }

  static void finish(const Panel& panel, size_t tile, size_t first_output) {
    const linear::Task& task = panel.task;
    const Tile& from = panel.tiles[tile];
    const size_t done = Lanes::whole(task.k), first = from.coded * kGroupInputs;
    uint16_t last[kOutputs][kLanes];
    for (size_t output = 0; output < kOutputs && done != task.k; ++output) {
      const uint8_t* rest = from.rest + (output * (task.k - first) + done - first) * sizeof(uint16_t);
      memcpy(last[output], rest, (task.k - done) * sizeof(uint16_t));
    }
    static_assert(V::kFolded % kOutputs == 0);
    constexpr size_t kRows = V::kFolded / kOutputs;  // that are folded at once
    for (size_t row = 0; row < task.m; row += kRows) {
      const size_t some = std::min(kRows, task.m - row);
      Vector even[V::kFolded], odd[V::kFolded];
      for (size_t i = 0; i < V::kFolded; ++i) {
        even[i] = odd[i] = V::zero();
        if (i < some * kOutputs) halve(panel, tile, row + i / kOutputs, i % kOutputs, &even[i], &odd[i]);
      }
      float sums[V::kFolded];
      V::fold(even, odd, sums);
      for (size_t i = 0; i < some * kOutputs; ++i) {
        const size_t column = first_output + i % kOutputs;
        if (column >= task.n) continue;
        float sum = sums[i];
        const uint16_t* x = task.x + (row + i / kOutputs) * task.k;
        if (done != task.k) sum = linear::add_tail(sum, x + done, last[i % kOutputs], task.k - done);
        if (task.bias != nullptr) sum += linear::widen_one(task.bias[column]);
        task.out[(row + i / kOutputs) * task.n + column] = linear::round_one(sum);
      }
    }
  }

  static bool multiply(const linear::Task& task, const void* packed, const Matrix& matrix, size_t first, size_t count,
                       void* scratch) {
    const size_t most = widens(task.m) ? kPanelTiles : 1;
    float* wide = static_cast<float*>(scratch);
    Panel panel = {task, static_cast<const float*>(packed), wide, wide + kPanelTiles * kWideFloats, most, {}, 0};
    for (size_t done = 0; done < count; done += panel.count) {
      panel.count = std::min(most, count - done);
      for (size_t t = 0; t < panel.count; ++t) {
        if (!open_tile(matrix, first + done + t, &panel.tiles[t])) return false;
      }
      memset(panel.sums, 0, most * task.m * kTileSums * sizeof(float));
      (widens(task.m) ? add_many : add_few)(panel);
      for (size_t t = 0; t < panel.count; ++t) finish(panel, t, (first + done + t) * kOutputs);
    }
    return true;
  }
};

}  // namespace
}  // namespace zipmoe::nibble

#endif
