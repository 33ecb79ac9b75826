// Products from nibble form on one instruction set. V is an instruction set of linear/lanes.h whose kStreamRows is 0, and
// offers in addition, with kPassVectors = 16 / kLanes vectors of lanes a pass, in the order of linear/lanes.h:
//   kDirectRows            most rows of x that are multiplied with weights in registers
//   Tables tables(bytes)   the tables of a tile, for `widen`
//   void widen(group, tables, w)  widens a group: w[(step * kOutputs + output) * kPassVectors + vector]
//
// A few rows of x multiply each group as it is decoded. For more rows, and where a pass has exceptions, some steps of a few
// tiles are first widened to memory that stays in the first-level cache.
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
constexpr size_t kPanelTiles = 4;                        // of the many-rows product
constexpr size_t kTileSums = kOutputs * kLanes;          // floats, for each row of x
constexpr size_t kAhead = 6144;                          // bytes that are prefetched to the second-level cache
constexpr size_t kCacheLine = 64;

template <class V>
struct Product {
  using Vector = typename V::Vector;
  using Lanes = linear::Lanes<V>;
  using RowTiles = typename Lanes::Tiles;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kPassVectors = kPassLanes / W;
  static constexpr size_t kVectors = kLanes / W;

  static bool is_direct(size_t m) { return m <= V::kDirectRows; }
  static size_t panel_tiles(size_t m) { return is_direct(m) ? 1 : kPanelTiles; }

  // First the widened weights of each tile of a panel; then the sums: pass, tile, row of x, output, lane.
  static size_t scratch_bytes(size_t m, size_t) {
    return panel_tiles(m) * (kWideFloats + m * kTileSums) * sizeof(float);
  }

  // --- weights ------------------------------------------------------------------------------------------------------

  static inline void prefetch(const uint8_t* at) {
    V::prefetch_far(reinterpret_cast<const char*>(at));
    V::prefetch_far(reinterpret_cast<const char*>(at) + kCacheLine);
  }

  // Widens steps [begin, end) of a pass; `begin` is even.
  static void widen(const Tile& tile, size_t k, size_t pass, size_t begin, size_t end, size_t ahead, float* wide) {
    const size_t coded = std::max(begin, std::min(end, tile.coded * kGroupSteps));
    const typename V::Tables tables = V::tables(tile.tables);
    const uint8_t* group = tile.groups[pass] + begin / kGroupSteps * kGroupBytes;
    float* to = wide;
    for (size_t step = begin; step < coded; step += kGroupSteps, group += kGroupBytes) {
      prefetch(group + ahead);
      Vector w[kGroupSteps * kOutputs * kPassVectors];
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

  // --- sums of a tile and some rows of x ------------------------------------------------------------------------------

  // Vectors of a step of x are `next_vector` floats apart; a vector of a step has R rows.
  template <size_t R>
  static void add_coded(const Tile& tile, size_t pass, const float* x, size_t next_vector, float* sums) {
    Vector sum[R][kOutputs][kPassVectors];
    each<R>([&](size_t r, size_t output, size_t v) { sum[r][output][v] = V::load(at(sums, r, output, v)); });
    const typename V::Tables tables = V::tables(tile.tables);
    const uint8_t* group = tile.groups[pass];
    for (size_t left = tile.coded; left > 0; --left, group += kGroupBytes, x += kGroupSteps * R * W) {
      prefetch(group + kAhead);
      Vector w[kGroupSteps * kOutputs * kPassVectors];
      V::widen(group, tables, w);
#pragma GCC unroll 2
      for (size_t step = 0; step < kGroupSteps; ++step) {
        Vector input[R][kPassVectors];
        each<R>([&](size_t r, size_t output, size_t v) {
          if (output == 0) input[r][v] = V::load(x + v * next_vector + (step * R + r) * W);
          sum[r][output][v] =
              V::multiply_add(input[r][v], w[(step * kOutputs + output) * kPassVectors + v], sum[r][output][v]);
        });
      }
    }
    each<R>([&](size_t r, size_t output, size_t v) { V::store(at(sums, r, output, v), sum[r][output][v]); });
  }

  // One vector of widened weights.
  template <size_t R>
  static void add_wide(const float* wide, size_t v, size_t steps, const float* x, float* sums) {
    Vector sum[R][kOutputs];
    Lanes::template each<R, kOutputs>([&](size_t r, size_t output) { sum[r][output] = V::load(at(sums, r, output, v)); });
    wide += v * W;
    for (; steps > 0; --steps, wide += kStepFloats, x += R * W) {
      Vector w[kOutputs], input[R];
      for (size_t output = 0; output < kOutputs; ++output) w[output] = V::load(wide + output * kPassLanes);
      Lanes::template each<R, kOutputs>([&](size_t r, size_t output) {
        if (output == 0) input[r] = V::keep(V::load(x + r * W));
        sum[r][output] = V::multiply_add(input[r], w[output], sum[r][output]);
      });
    }
    Lanes::template each<R, kOutputs>([&](size_t r, size_t output) { V::store(at(sums, r, output, v), sum[r][output]); });
  }

  static inline float* at(float* sums, size_t row, size_t output, size_t v) {
    return sums + ((row * kOutputs + output) * kPassVectors + v) * W;
  }

  // Calls act(row, output, vector), unrolled.
  template <size_t R, class Act>
  static inline __attribute__((always_inline)) void each(Act&& act) {
    Lanes::template each<R, kOutputs>([&](size_t r, size_t output) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (size_t v = 0; v < kPassVectors; ++v) act(r, output, v);
    });
  }

  using AddCoded = void (*)(const Tile&, size_t, const float*, size_t, float*);
  using AddWide = void (*)(const float*, size_t, size_t, const float*, float*);

  template <size_t R>
  static AddCoded coded_of(size_t rows) {
    if constexpr (R > 1) {
      if (rows < R) return coded_of<R - 1>(rows);
    }
    return add_coded<R>;
  }
  template <size_t R>
  static AddWide wide_of(size_t rows) {
    if constexpr (R > 1) {
      if (rows < R) return wide_of<R - 1>(rows);
    }
    return add_wide<R>;
  }

  // --- panels -------------------------------------------------------------------------------------------------------

  struct Panel {
    const linear::Task& task;
    const float* x;
    float *wide, *sums;
    Tile tiles[kPanelTiles];
    size_t count;

    float* wide_of(size_t tile) const { return wide + tile * kWideFloats; }
    float* sums_of(size_t pass, size_t tile, size_t row) const {
      return sums + ((pass * count + tile) * task.m + row) * kOutputs * kPassLanes;
    }
  };

  static void add_pass(const Panel& panel, size_t pass) {
    const size_t steps = panel.task.k / kLanes;
    const RowTiles rows(panel.task.m);
    size_t begin = 0;
    if (is_direct(panel.task.m) && panel.tiles[0].exceptions[pass] == 0 && panel.tiles[0].coded > 0) {
      const size_t m = panel.task.m;
      const float* x = panel.x + pass * kPassVectors * steps * m * W;
      coded_of<V::kDirectRows>(m)(panel.tiles[0], pass, x, steps * m * W, panel.sums_of(pass, 0, 0));
      begin = panel.tiles[0].coded * kGroupSteps;
    }
    for (; begin < steps; begin += kBlockSteps) {
      const size_t end = std::min(begin + kBlockSteps, steps);
      for (size_t t = 0; t < panel.count; ++t) {
        const size_t ahead = panel.count * kPasses * panel.tiles[t].coded * kGroupBytes;
        widen(panel.tiles[t], panel.task.k, pass, begin, end, ahead, panel.wide_of(t));
      }
      for (size_t r = 0; r < rows.count; ++r) {
        const size_t first = rows.first(r), some = rows.rows(r);
        const AddWide add = wide_of<V::kTileRows>(some);
        for (size_t v = 0; v < kPassVectors; ++v) {
          const size_t vector_steps = (pass * kPassVectors + v) * steps + begin;
          const float* x = panel.x + (first * steps * kVectors + vector_steps * some) * W;
          for (size_t t = 0; t < panel.count; ++t) {
            add(panel.wide_of(t), v, end - begin, x, panel.sums_of(pass, t, first));
          }
        }
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
    for (size_t output = 0; output < kOutputs; ++output) {
      const uint8_t* rest = from.rest + (output * (task.k - first) + done - first) * sizeof(uint16_t);
      memcpy(last[output], rest, (task.k - done) * sizeof(uint16_t));
    }
    static_assert(V::kFolded % kOutputs == 0);
    constexpr size_t kRows = V::kFolded / kOutputs;  // that are folded at once
    for (size_t row = 0; row < task.m; row += kRows) {
      const size_t some = std::min(kRows, task.m - row);
      Vector even[V::kFolded], odd[V::kFolded];
      for (size_t i = 0; i < V::kFolded; ++i) {
        halve(panel, tile, row + std::min(i / kOutputs, some - 1), i % kOutputs, &even[i], &odd[i]);
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
    const size_t most = panel_tiles(task.m);
    float* wide = static_cast<float*>(scratch);
    Panel panel = {task, static_cast<const float*>(packed), wide, wide + most * kWideFloats, {}, 0};
    for (size_t done = 0; done < count; done += panel.count) {
      panel.count = std::min(most, count - done);
      for (size_t t = 0; t < panel.count; ++t) {
        if (!open_tile(matrix, first + done + t, &panel.tiles[t])) return false;
      }
      memset(panel.sums, 0, panel.count * task.m * kTileSums * sizeof(float));
      for (size_t pass = 0; pass < kPasses; ++pass) add_pass(panel, pass);
      for (size_t t = 0; t < panel.count; ++t) finish(panel, t, (first + done + t) * kOutputs);
    }
    return true;
  }
};

}  // namespace
}  // namespace zipmoe::nibble

#endif
