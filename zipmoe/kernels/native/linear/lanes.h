// The order "lanes" on one instruction set. V offers, on vectors of kLanes fp32 lanes:
//   kLanes           4, 8 or 16, half of the weights of a load
//   kTileRows        rows of x in a register tile, at most 8; the tile has kTileColumns rows of weights
//   kWidenRows       least number of rows of x for which a panel is widened beforehand
//   kStreamRows      most rows of x that are computed with all lanes at once
//   Vector zero(), load(p), add(a, b), multiply_add(a, b, c) = a * b + c; store(p, v)
//   Vector even(bf16), odd(bf16)  the even or odd numbers of 2 kLanes bf16 numbers, widened by a shift or a mask
//   Vector keep(v)   v in a register; without `keep`, compilers read v from memory again for each use
//   kFolded          sums that are folded at once
//   fold(e, o, to)   kFolded sums: adds halves of the vectors e[i] and o[i] until each has one lane, then adds both
//                    lanes
//   prefetch(p)      prefetches the reads that follow soon after p; prefetch_far(p): the line of p, to the second-level
//                    cache
//
// The order of lanes in vectors is therefore: groups of 2 kLanes lanes, in each group the even lanes, then the odd
// lanes. Folding by + 32 ... + 2 never mixes even and odd lanes; the last fold, + 1, adds them.
//
// A file that is compiled for one instruction set must not export inline functions that the linker could use for other
// files. All code here therefore depends on V or is in an unnamed namespace.
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_H
#define ZIPMOE_KERNELS_LINEAR_LANES_H

#include <math.h>
#include <string.h>

#include "linear/linear.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kAllLanes = 64;
constexpr size_t kTileColumns = 3;
constexpr size_t kPanelBytes = 192 << 10;  // of widened weights: less than the second-level cache of any core
constexpr size_t kGroupRows = 16;   // rows of x in a group of tiles
constexpr size_t kNarrowPanel = 6;  // rows of a panel that is not widened: they fit the first-level cache
constexpr size_t kFewRows = 8;      // up to this many rows of x reuse a panel too little: a smaller one is better
constexpr size_t kWidePanel = 24;

inline float widen_one(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to the nearest, ties to even.
inline uint16_t round_one(float value) {
  if (value != value) return 0x7fc0;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Adds the last k % 64 products to the sum of the other products.
inline float add_tail(float sum, const uint16_t* x, const uint16_t* weight, size_t count) {
  float lanes[8] = {};
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t lane = 0; lane < 8; ++lane) {
      lanes[lane] = fmaf(widen_one(x[i + lane]), widen_one(weight[i + lane]), lanes[lane]);
    }
    for (size_t lane = 0; lane < 8; ++lane) {
      lanes[lane] = fmaf(widen_one(x[i + 8 + lane]), widen_one(weight[i + 8 + lane]), lanes[lane]);
    }
  }
  for (size_t half = 4; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  sum += lanes[0];
  for (; i < count; ++i) sum = fmaf(widen_one(x[i]), widen_one(weight[i]), sum);
  return sum;
}

template <class V>
struct Lanes {
  using Vector = typename V::Vector;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kGroups = kAllLanes / W / 2;
  static constexpr size_t kVectors = 2 * kGroups;
  static constexpr size_t kNc = kTileColumns;

  static size_t whole(size_t k) { return k / kAllLanes * kAllLanes; }
  static bool streams(size_t m) { return m <= V::kStreamRows; }
  static constexpr size_t kGroupTiles = kGroupRows / V::kTileRows;
  static bool widens(size_t m) { return m >= V::kWidenRows; }

  // --- inputs -------------------------------------------------------------------------------------------------------

  // Tiles of rows of x, of nearly equal size. The packed order is tile, vector of lanes, step of 64 inputs, row, lane.
  struct Tiles {
    size_t count, m;
    explicit Tiles(size_t rows) : count((rows + V::kTileRows - 1) / V::kTileRows), m(rows) {}
    size_t first(size_t tile) const { return tile * m / count; }
    size_t rows(size_t tile) const { return first(tile + 1) - first(tile); }
  };

  static size_t packed_bytes(size_t m, size_t k) { return m * whole(k) * sizeof(float); }

  static void pack(const Task& task, void* packed) {
    const size_t steps = task.k / kAllLanes;
    float* to = static_cast<float*>(packed);
    if (streams(task.m)) {  // row, step, vector
      for (size_t row = 0; row < task.m; ++row, to += whole(task.k)) {
        pack_row(task.x + row * task.k, steps, to, W, kAllLanes);
      }
      return;
    }
    const Tiles tiles(task.m);
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      const size_t rows = tiles.rows(tile);
      for (size_t row = 0; row < rows; ++row) {
        pack_row(task.x + (tiles.first(tile) + row) * task.k, steps, to + row * W, steps * rows * W, rows * W);
      }
      to += rows * whole(task.k);
    }
  }

  // Widens a row. The distance between vectors of a step is `next_vector` floats, between steps of a vector
  // `next_step`.
  static void pack_row(const uint16_t* from, size_t steps, float* to, size_t next_vector, size_t next_step) {
    for (size_t step = 0; step < steps; ++step, to += next_step) {
      for (size_t group = 0; group < kGroups; ++group, from += 2 * W) {
        V::store(to + 2 * group * next_vector, V::even(from));
        V::store(to + (2 * group + 1) * next_vector, V::odd(from));
      }
    }
  }

  // --- panels -------------------------------------------------------------------------------------------------------

  static size_t panel_rows(size_t m, size_t k) {
    if (streams(m)) return 1;
    const size_t most = widens(m) ? kWidePanel : m > kFewRows ? kNarrowPanel : kTileColumns;
    const size_t rows = kPanelBytes / (sizeof(float) * (k + kAllLanes));
    return rows < kNc ? kNc : rows > most ? most : rows / kNc * kNc;
  }

  // Layout of a panel's scratch memory, in floats. First the weights, if they are widened. Then the partial sums: a
  // vector for each output of a group of tiles, for each level of folding, for even and for odd lanes. Then the folded
  // sums of a group, and the rounded sums.
  struct Layout {
    size_t columns, weights, level, sums;
    Layout(size_t m, size_t k) {
      columns = panel_rows(m, k);
      weights = widens(m) ? columns * whole(k) : 0;
      sums = (columns * kGroupRows + 15) / 16 * 16;
      level = sums * W;
    }
    size_t bytes() const { return (weights + 2 * level * (kFolds + 1) + 2 * sums) * sizeof(float); }
  };

  static constexpr size_t log2(size_t value) { return value == 1 ? 0 : 1 + log2(value / 2); }
  static constexpr size_t kFolds = log2(kGroups);

  static size_t scratch_bytes(size_t m, size_t k) { return streams(m) ? 0 : Layout(m, k).bytes(); }

  static void multiply(const Task& task, const void* packed, const uint16_t* weight, size_t first, size_t rows,
                       void* scratch) {
    const float* x = static_cast<const float*>(packed);
    if (streams(task.m)) {
      stream_any<V::kStreamRows>(task, x, weight, first, rows);
      return;
    }
    const Layout layout(task.m, task.k);
    for (size_t done = 0; done < rows; done += layout.columns) {
      const size_t some = rows - done < layout.columns ? rows - done : layout.columns;
      panel(task, x, weight + done * task.k, first + done, some, layout, static_cast<float*>(scratch));
    }
  }

  // Adds the last k % 64 products and the bias to the folded lanes of one output.
  static float add_rest(const Task& task, size_t row, size_t column, const uint16_t* weight, float sum) {
    const size_t done = whole(task.k);
    if (done != task.k) sum = add_tail(sum, task.x + row * task.k + done, weight + done, task.k - done);
    return task.bias == nullptr ? sum : sum + widen_one(task.bias[column]);
  }

  // --- few rows: weights straight from memory -----------------------------------------------------------------------

  template <size_t M>
  static void stream_any(const Task& task, const float* x, const uint16_t* weight, size_t first, size_t rows) {
    if constexpr (M > 1) {
      if (task.m < M) return stream_any<M - 1>(task, x, weight, first, rows);
    }
    for (size_t row = 0; row < rows; ++row) stream<M>(task, x, weight + row * task.k, first + row);
  }

  // Multiplies one row of weights, with all lanes. A core that reads two rows at once reads each at half the speed at
  // most.
  template <size_t M>
  static void stream(const Task& task, const float* x, const uint16_t* weight, size_t first) {
    const size_t whole_k = whole(task.k);
    Vector sum[M][kVectors];
    each<M, kVectors>([&](size_t m, size_t v) { sum[m][v] = V::zero(); });
    for (size_t at = 0; at < whole_k; at += kAllLanes) {
      if (!task.cached) {
        V::prefetch(weight + at);
        V::prefetch(weight + at + 32);
      }
      Vector w[kVectors];
      for (size_t group = 0; group < kGroups; ++group) {
        w[2 * group] = V::even(weight + at + 2 * group * W);
        w[2 * group + 1] = V::odd(weight + at + 2 * group * W);
      }
      each<M, kVectors>([&](size_t m, size_t v) {
        sum[m][v] = V::multiply_add(V::load(x + m * whole_k + at + v * W), w[v], sum[m][v]);
      });
    }
    for (size_t m = 0; m < M; ++m) {
      for (size_t half = kVectors / 2; half > 1; half /= 2) {
        for (size_t v = 0; v < half; ++v) sum[m][v] = V::add(sum[m][v], sum[m][v + half]);
      }
    }
    Vector even[V::kFolded], odd[V::kFolded];
    for (size_t m = 0; m < V::kFolded; ++m) {
      even[m] = m < M ? sum[m][0] : V::zero();
      odd[m] = m < M ? sum[m][1] : V::zero();
    }
    float sums[V::kFolded];
    V::fold(even, odd, sums);
    for (size_t m = 0; m < M; ++m) task.out[m * task.n + first] = round_one(add_rest(task, m, first, weight, sums[m]));
  }

  // Calls act(m, n) for every m < M and n < N, unrolled: otherwise arrays of vectors would not stay in registers.
  template <size_t M, size_t N, class Act>
  static inline __attribute__((always_inline)) void each(Act&& act) {
#pragma GCC unroll 16
    for (size_t m = 0; m < M; ++m) {
#pragma GCC unroll 16
      for (size_t n = 0; n < N; ++n) act(m, n);
    }
  }

  // --- many rows: a panel of weights in the cache serves one tile of rows after the other ----------------------------

  // One vector of lanes of the weights of a tile column: from the rows themselves, or from widened and packed weights.
  struct Even {
    const uint16_t* row[kNc];
    inline Vector load(size_t step, size_t n) const { return V::even(row[n] + step * kAllLanes); }
  };
  struct Odd {
    const uint16_t* row[kNc];
    inline Vector load(size_t step, size_t n) const { return V::odd(row[n] + step * kAllLanes); }
  };
  struct Wide {
    const float* packed;
    inline Vector load(size_t step, size_t n) const { return V::load(packed + (step * kNc + n) * W); }
  };

  // Sums the lanes of one vector over all steps, and adds the sums of `folded` levels.
  template <size_t M, class Weights>
  static void tile(const float* x, const Weights& weights, size_t steps, const float* level, size_t level_size,
                   size_t folded, float* out) {
    Vector sum[M][kNc];
    each<M, kNc>([&](size_t m, size_t n) { sum[m][n] = V::zero(); });
    for (size_t step = 0; step < steps; ++step, x += M * W) {
      Vector w[kNc], input[M];
      for (size_t n = 0; n < kNc; ++n) w[n] = weights.load(step, n);
      each<M, kNc>([&](size_t m, size_t n) {
        if (n == 0) input[m] = V::keep(V::load(x + m * W));
        sum[m][n] = V::multiply_add(input[m], w[n], sum[m][n]);
      });
    }
    for (; folded > 0; --folded, level += level_size) {
      each<M, kNc>([&](size_t m, size_t n) { sum[m][n] = V::add(V::load(level + (m * kNc + n) * W), sum[m][n]); });
    }
    each<M, kNc>([&](size_t m, size_t n) { V::store(out + (m * kNc + n) * W, sum[m][n]); });
  }

  template <class Weights>
  using Tile = void (*)(const float*, const Weights&, size_t, const float*, size_t, size_t, float*);

  template <class Weights>
  static Tile<Weights> tile_of(size_t rows) {
    constexpr size_t most = V::kTileRows;
    static constexpr Tile<Weights> kTiles[8] = {
        tile<1, Weights>,
        tile<2, Weights>,
        tile<3, Weights>,
        tile<4, Weights>,
        tile<(most < 5 ? 1 : 5), Weights>,
        tile<(most < 6 ? 1 : 6), Weights>,
        tile<(most < 7 ? 1 : 7), Weights>,
        tile<(most < 8 ? 1 : 8), Weights>,
    };
    return kTiles[rows - 1];
  }

  static size_t reverse_bits(size_t group) {
    size_t reversed = 0;
    for (size_t bit = 1; bit < kGroups; bit *= 2) reversed = reversed * 2 + (group & bit ? 1 : 0);
    return reversed;
  }

  // A panel of weights, and its task, place and scratch memory.
  struct Panel {
    const Task& task;
    const Layout& layout;
    const uint16_t* weight;
    size_t first, rows, columns, steps;
    float* scratch;

    // The panel's last row stands for the missing rows of a tile column.
    const uint16_t* row(size_t c, size_t n) const {
      return weight + (c * kNc + n < rows ? c * kNc + n : rows - 1) * task.k;
    }
    float* wide(size_t c) const { return scratch + c * kNc * whole(task.k); }
    float* level(size_t parity, size_t folded) const {
      return scratch + layout.weights + (parity * (kFolds + 1) + folded) * layout.level;
    }
    float* sums() const { return level(2, 0); }
  };

  static void panel(const Task& task, const float* x, const uint16_t* weight, size_t first, size_t rows,
                    const Layout& layout, float* scratch) {
    const Panel panel = {task, layout, weight, first, rows, (rows + kNc - 1) / kNc, task.k / kAllLanes, scratch};
    if (widens(task.m)) {
      for (size_t c = 0; c < panel.columns; ++c) {
        for (size_t n = 0; n < kNc; ++n) {
          pack_row(panel.row(c, n), panel.steps, panel.wide(c) + n * W, panel.steps * kNc * W, kNc * W);
        }
      }
    }
    const Tiles tiles(task.m);
    const size_t calls = tiles.count * kVectors * panel.columns;
    // Prefetches the next panel meanwhile, in memory order.
    const char* ahead = reinterpret_cast<const char*>(weight + rows * task.k);
    const size_t lines = task.cached ? 0 : (rows * task.k / 32 + calls - 1) / calls;
    for (size_t t = 0; t < tiles.count; t += kGroupTiles) {
      const size_t end = t + kGroupTiles < tiles.count ? t + kGroupTiles : tiles.count;
      // Takes one vector of lanes after the other, so that the parts of x and of the weights that the tiles of a group
      // use stay in the first-level cache. In bit-reversed order a partial sum is always folded with the last sum of
      // its level.
      for (size_t i = 0; i < kVectors; ++i) {
        const size_t v = 2 * reverse_bits(i / 2) + i % 2;
        for (size_t tile = t; tile < end; ++tile) {
          for (size_t line = 0; line < lines * panel.columns; ++line, ahead += 64) V::prefetch_far(ahead);
          tile_row(panel, x + tiles.first(tile) * whole(task.k), tiles.first(tile) - tiles.first(t), tiles.rows(tile), i / 2, v);
        }
      }
      finish(panel, tiles.first(t), tiles.first(end) - tiles.first(t));
    }
  }

  // Computes one vector of lanes of the tiles of all columns, for some rows of x.
  static void tile_row(const Panel& panel, const float* x, size_t group_row, size_t rows, size_t pass, size_t v) {
    const size_t parity = v % 2, at = v / 2 * 2 * W;
    size_t folded = 0;
    while (pass >> folded & 1) ++folded;
    const float* vector_x = x + v * panel.steps * rows * W;
    for (size_t c = 0; c < panel.columns; ++c) {
      const size_t place = (group_row * panel.columns + c * rows) * kNc * W;
      const float* level = panel.level(parity, 0) + place;
      float* out = panel.level(parity, folded) + place;
      if (widens(panel.task.m)) {
        tile_of<Wide>(rows)(vector_x, {panel.wide(c) + v * panel.steps * kNc * W}, panel.steps, level,
                            panel.layout.level, folded, out);
      } else if (parity == 0) {
        tile_of<Even>(rows)(vector_x, {{panel.row(c, 0) + at, panel.row(c, 1) + at, panel.row(c, 2) + at}}, panel.steps,
                            level, panel.layout.level, folded, out);
      } else {
        tile_of<Odd>(rows)(vector_x, {{panel.row(c, 0) + at, panel.row(c, 1) + at, panel.row(c, 2) + at}}, panel.steps,
                           level, panel.layout.level, folded, out);
      }
    }
  }

  // Folds, rounds and stores the sums of a group of tiles. The order of the sums is tile, column, row, n.
  static void finish(const Panel& panel, size_t first_row, size_t rows) {
    const size_t count = rows * panel.columns * kNc;
    const float* even_lanes = panel.level(0, kFolds);
    const float* odd_lanes = panel.level(1, kFolds);
    float* sums = panel.sums();
    for (size_t i = 0; i < count; i += V::kFolded) {
      Vector even[V::kFolded], odd[V::kFolded];
      for (size_t j = 0; j < V::kFolded; ++j) {
        even[j] = V::load(even_lanes + (i + j) * W);
        odd[j] = V::load(odd_lanes + (i + j) * W);
      }
      V::fold(even, odd, sums + i);
    }
    const Task& task = panel.task;
    if (task.bias != nullptr || whole(task.k) != task.k) {
      each_output(panel, first_row, rows, [&](size_t i, size_t row, size_t n) {
        sums[i] = add_rest(task, row, panel.first + n, panel.weight + n * task.k, sums[i]);
      });
    }
    uint16_t* rounded = reinterpret_cast<uint16_t*>(sums + panel.layout.sums);
    for (size_t i = 0; i < count; ++i) rounded[i] = round_one(sums[i]);
    each_output(panel, first_row, rows,
                [&](size_t i, size_t row, size_t n) { task.out[row * task.n + panel.first + n] = rounded[i]; });
  }

  template <class Act>
  static inline void each_output(const Panel& panel, size_t first_row, size_t rows, Act&& act) {
    const Tiles tiles(panel.task.m);
    size_t i = 0;
    for (size_t t = 0; t < tiles.count; ++t) {
      if (tiles.first(t) < first_row || tiles.first(t) >= first_row + rows) continue;
      for (size_t c = 0; c < panel.columns; ++c) {
        for (size_t row = tiles.first(t); row < tiles.first(t + 1); ++row) {
          for (size_t n = c * kNc; n < (c + 1) * kNc; ++n, ++i) {
            if (n < panel.rows) act(i, row, n);
          }
        }
      }
    }
  }

  static constexpr Kernel kKernel = {packed_bytes, scratch_bytes, panel_rows, pack, multiply};
};

}  // namespace
}  // namespace zipmoe::linear

#endif
