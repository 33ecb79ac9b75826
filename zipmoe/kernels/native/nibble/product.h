// Products from nibble form on one instruction set. V is an instruction set of linear/lanes.h whose kStreamRows is 0, and
// offers in addition, with kPassVectors = 16 / kLanes vectors of lanes a pass, in the order of linear/lanes.h:
//   kTogether<R>           vectors of a pass that are multiplied by R rows of x together, as registers allow
//   Tables tables(bytes)   the tables of a tile, for `widen`
//   void widen(group, tables, w)  widens a group: w[(step * kOutputs + output) * kPassVectors + vector]
//
// Up to kTileRows rows of x take one tile after the other (nibble/few_rows.h). For more rows, some steps of a few tiles are
// widened to memory that stays in the first-level cache, and serve one tile of rows after the other.
#ifndef ZIPMOE_KERNELS_NIBBLE_PRODUCT_H
#define ZIPMOE_KERNELS_NIBBLE_PRODUCT_H

#include "linear/lanes.h"
#include "nibble/few_rows.h"

namespace zipmoe::nibble {
namespace {

constexpr size_t kPanelTiles = 3;                // whose outputs make whole columns
constexpr size_t kColumn = 3;                    // outputs that share an input
constexpr size_t kTileSums = kOutputs * kLanes;  // floats, for each row of x

template <class V>
struct Product {
  using Vector = typename V::Vector;
  using Lanes = linear::Lanes<V>;
  using Few = FewRows<V>;
  using Weights = nibble::Weights<V>;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kPassVectors = Weights::kPassVectors;
  static constexpr size_t kVectors = kLanes / W;

  static bool widens(size_t m) { return m > V::kTileRows; }

  // First the widened weights, then the sums: pass, tile, row of x, output, lane.
  static size_t scratch_bytes(size_t m, size_t) { return kPanelTiles * (kWideFloats + m * kTileSums) * sizeof(float); }

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
    const typename Few::AddPass add_rows = Few::template add_pass_of<V::kTileRows>(m);
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
    const typename Lanes::Tiles rows(panel.task.m);
    for (size_t pass = 0; pass < kPasses; ++pass) {
      for (size_t begin = 0; begin < steps; begin += kBlockSteps) {
        const size_t end = std::min(begin + kBlockSteps, steps);
        for (size_t t = 0; t < panel.count; ++t) Weights::widen(panel.tiles[t], k, pass, begin, end, ahead, panel.wide_of(t));
        for (size_t r = 0; r < rows.count; ++r) add_block(panel, pass, begin, end, rows.first(r), rows.rows(r));
      }
    }
  }

  // Folds the lanes of an output: returns the last even and odd vector.
  static void halve(const Panel& panel, size_t tile, size_t row, size_t output, Vector* even, Vector* odd) {
    Vector sum[kVectors];
    for (size_t i = 0; i < kVectors; ++i) {
      sum[i] = V::load(Few::at(panel.sums_of(i / kPassVectors, tile, row), 0, output, i % kPassVectors));
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
