// The order "lanes" on one instruction set. V offers, on vectors of kLanes fp32 lanes:
//   kLanes                        4, 8 or 16
//   kTileRows                     rows of x in a register tile, at most 8; the tile has kTileColumns rows of weights
//   kStreamRows, kStreamColumns   up to that many rows of x are computed without packing, so many weight rows at a time
//   Vector zero(), load(p), widen(bf16), add(a, b), multiply_add(a, b, c) = a * b + c; store(p, v)
//   float fold(v)                 the sum, halves added until one lane is left
//
// A file that is compiled for one instruction set must not leave inline functions for others to link: everything here
// depends on V or is in an unnamed namespace.
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_H
#define ZIPMOE_KERNELS_LINEAR_LANES_H

#include <math.h>
#include <string.h>

#include "linear.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kAllLanes = 64;
constexpr size_t kTileColumns = 3;
constexpr size_t kPanelBytes = 192 << 10;  // of widened weights: less than the second-level cache of any core
constexpr size_t kAhead = 1024;            // bytes between what is read and what is prefetched

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

// Adds the k % 64 last products to the sum of the others.
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
  static constexpr size_t kVectors = kAllLanes / W;
  static constexpr size_t kNc = kTileColumns;

  static size_t whole(size_t k) { return k / kAllLanes * kAllLanes; }
  static bool streams(size_t m) { return m <= V::kStreamRows; }

  // --- inputs -------------------------------------------------------------------------------------------------------

  // Rows of x are computed in tiles of nearly equal size; packed: tile, vector of lanes, step of 64, row, lane.
  struct Tiles {
    size_t count, m;
    explicit Tiles(size_t rows) : count((rows + V::kTileRows - 1) / V::kTileRows), m(rows) {}
    size_t first(size_t tile) const { return tile * m / count; }
    size_t rows(size_t tile) const { return first(tile + 1) - first(tile); }
  };

  static size_t packed_bytes(size_t m, size_t k) { return m * whole(k) * sizeof(float); }

  static void pack(const Task& task, void* packed) {
    const size_t whole_k = whole(task.k);
    float* to = static_cast<float*>(packed);
    if (streams(task.m)) {
      for (size_t row = 0; row < task.m; ++row) {
        for (size_t k = 0; k < whole_k; k += W, to += W) V::store(to, V::widen(task.x + row * task.k + k));
      }
      return;
    }
    const Tiles tiles(task.m);
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      const uint16_t* x = task.x + tiles.first(tile) * task.k;
      pack_rows(x, tiles.rows(tile), tiles.rows(tile), task.k, to);
      to += tiles.rows(tile) * whole_k;
    }
  }

  // Widens `rows` rows to the order vector, step, row, lane, as if there were `all` rows; the others are zero.
  static void pack_rows(const uint16_t* from, size_t rows, size_t all, size_t k, float* to) {
    const size_t steps = k / kAllLanes;
    for (size_t row = 0; row < all; ++row) {
      for (size_t step = 0; step < steps; ++step) {
        for (size_t vector = 0; vector < kVectors; ++vector) {
          const Vector v = row < rows ? V::widen(from + row * k + step * kAllLanes + vector * W) : V::zero();
          V::store(to + ((vector * steps + step) * all + row) * W, v);
        }
      }
    }
  }

  // --- panels -------------------------------------------------------------------------------------------------------

  static size_t panel_rows(size_t m, size_t k) {
    if (streams(m)) return 16;
    size_t columns = kPanelBytes / ((whole(k) + kAllLanes) * sizeof(float));
    if (m <= V::kTileRows && columns > 2 * kNc) columns = 2 * kNc;  // read once: the first-level cache is better
    return columns < kNc ? kNc : columns / kNc * kNc;
  }

  // Packed weights of a panel, then partial sums: for each tile column as many vectors as the tile has outputs, on as
  // many levels as the folding has, and at last the sums themselves.
  struct Scratch {
    size_t columns, weights, level, sums;
    Scratch(size_t m, size_t k) {
      columns = panel_rows(m, k);
      weights = columns * whole(k);
      level = columns * V::kTileRows * W;
      sums = columns * V::kTileRows;
    }
    size_t bytes() const { return (weights + level * (kFolds + 1) + sums) * sizeof(float); }
  };

  static constexpr size_t log2(size_t value) { return value == 1 ? 0 : 1 + log2(value / 2); }
  static constexpr size_t kFolds = log2(kVectors);

  static size_t scratch_bytes(size_t m, size_t k) { return streams(m) ? 0 : Scratch(m, k).bytes(); }

  static void multiply(const Task& task, const void* packed, const uint16_t* weight, size_t first, size_t rows,
                       void* scratch) {
    const float* x = static_cast<const float*>(packed);
    if (streams(task.m)) {
      stream_any<V::kStreamRows>(task, x, weight, first, rows);
      return;
    }
    const Scratch sizes(task.m, task.k);
    for (size_t done = 0; done < rows; done += sizes.columns) {
      const size_t some = rows - done < sizes.columns ? rows - done : sizes.columns;
      panel(task, x, weight + done * task.k, first + done, some, sizes, static_cast<float*>(scratch));
    }
  }

  static void finish(const Task& task, size_t row, size_t column, const uint16_t* weight, float sum) {
    const size_t whole_k = whole(task.k);
    if (whole_k != task.k) sum = add_tail(sum, task.x + row * task.k + whole_k, weight + whole_k, task.k - whole_k);
    if (task.bias != nullptr) sum += widen_one(task.bias[column]);
    task.out[row * task.n + column] = round_one(sum);
  }

  // --- few rows: weights straight from memory -----------------------------------------------------------------------

  template <size_t M>
  static void stream_any(const Task& task, const float* x, const uint16_t* weight, size_t first, size_t rows) {
    if constexpr (M > 1) {
      if (task.m < M) return stream_any<M - 1>(task, x, weight, first, rows);
    }
    size_t row = 0;
    for (; row + V::kStreamColumns <= rows; row += V::kStreamColumns) {
      stream<M, V::kStreamColumns>(task, x, weight + row * task.k, first + row);
    }
    for (; row < rows; ++row) stream<M, 1>(task, x, weight + row * task.k, first + row);
  }

  template <size_t M, size_t N>
  static void stream(const Task& task, const float* x, const uint16_t* weight, size_t first) {
    const size_t k = task.k, whole_k = whole(k);
    Vector sum[M][N][kVectors];
    for (size_t m = 0; m < M; ++m) {
      for (size_t n = 0; n < N; ++n) {
        for (size_t v = 0; v < kVectors; ++v) sum[m][n][v] = V::zero();
      }
    }
    for (size_t at = 0; at < whole_k; at += kAllLanes) {
      for (size_t n = 0; n < N; ++n) {
        __builtin_prefetch(reinterpret_cast<const char*>(weight + n * k + at) + kAhead);
        __builtin_prefetch(reinterpret_cast<const char*>(weight + n * k + at) + kAhead + 64);
      }
      for (size_t v = 0; v < kVectors; ++v) {
        Vector input[M];
        for (size_t m = 0; m < M; ++m) input[m] = V::load(x + m * whole_k + at + v * W);
        for (size_t n = 0; n < N; ++n) {
          const Vector w = V::widen(weight + n * k + at + v * W);
          for (size_t m = 0; m < M; ++m) sum[m][n][v] = V::multiply_add(input[m], w, sum[m][n][v]);
        }
      }
    }
    for (size_t m = 0; m < M; ++m) {
      for (size_t n = 0; n < N; ++n) {
        for (size_t half = kVectors / 2; half > 0; half /= 2) {
          for (size_t v = 0; v < half; ++v) sum[m][n][v] = V::add(sum[m][n][v], sum[m][n][v + half]);
        }
        finish(task, m, first + n, weight + n * k, V::fold(sum[m][n][0]));
      }
    }
  }

  // --- many rows: a panel of weights is widened once and reused from cache ------------------------------------------

  // The lanes of one vector, over all steps: x and weights are packed, partial sums go to or are added to `level`.
  template <size_t M>
  static void tile(const float* x, const float* weight, size_t steps, const float* const* levels, size_t level_count,
                   float* out) {
    Vector sum[M][kNc];
    for (size_t m = 0; m < M; ++m) {
      for (size_t n = 0; n < kNc; ++n) sum[m][n] = V::zero();
    }
    for (size_t step = 0; step < steps; ++step, x += M * W, weight += kNc * W) {
      Vector w[kNc];
      for (size_t n = 0; n < kNc; ++n) w[n] = V::load(weight + n * W);
      for (size_t m = 0; m < M; ++m) {
        const Vector input = V::load(x + m * W);
        for (size_t n = 0; n < kNc; ++n) sum[m][n] = V::multiply_add(input, w[n], sum[m][n]);
      }
    }
    for (size_t i = 0; i < level_count; ++i) {
      for (size_t m = 0; m < M; ++m) {
        for (size_t n = 0; n < kNc; ++n) sum[m][n] = V::add(V::load(levels[i] + (m * kNc + n) * W), sum[m][n]);
      }
    }
    for (size_t m = 0; m < M; ++m) {
      for (size_t n = 0; n < kNc; ++n) V::store(out + (m * kNc + n) * W, sum[m][n]);
    }
  }

  using Tile = void (*)(const float*, const float*, size_t, const float* const*, size_t, float*);
  static Tile tile_of(size_t rows) {
    static constexpr Tile kTiles[8] = {tile<1>,
                                       tile<2>,
                                       tile<3>,
                                       tile<4>,
                                       tile<V::kTileRows < 5 ? 1 : 5>,
                                       tile<V::kTileRows < 6 ? 1 : 6>,
                                       tile<V::kTileRows < 7 ? 1 : 7>,
                                       tile<V::kTileRows < 8 ? 1 : 8>};
    return kTiles[rows - 1];
  }

  static size_t reverse_bits(size_t vector) {
    size_t reversed = 0;
    for (size_t bit = 1; bit < kVectors; bit *= 2) reversed = reversed * 2 + (vector & bit ? 1 : 0);
    return reversed;
  }

  static void panel(const Task& task, const float* x, const uint16_t* weight, size_t first, size_t rows,
                    const Scratch& sizes, float* scratch) {
    const size_t steps = task.k / kAllLanes, columns = (rows + kNc - 1) / kNc;
    float* packed = scratch;
    float* levels = scratch + sizes.weights;
    for (size_t c = 0; c < columns; ++c) {
      const size_t some = rows - c * kNc < kNc ? rows - c * kNc : kNc;
      pack_rows(weight + c * kNc * task.k, some, kNc, task.k, packed + c * kNc * whole(task.k));
    }
    const Tiles tiles(task.m);
    for (size_t t = 0; t < tiles.count; ++t) {
      const size_t tile_rows = tiles.rows(t);
      const float* tile_x = x + tiles.first(t) * whole(task.k);
      const Tile compute = tile_of(tile_rows);
      // Vectors in bit-reversed order: then every partial sum that is folded with another one is the last of its level.
      for (size_t i = 0; i < kVectors; ++i) {
        const size_t vector = reverse_bits(i);
        size_t folded = 0;
        while (i >> folded & 1) ++folded;
        for (size_t c = 0; c < columns; ++c) {
          float* mine = levels + c * kNc * V::kTileRows * W;
          const float* below[kFolds + 1];
          for (size_t level = 0; level < folded; ++level) below[level] = mine + level * sizes.level;
          compute(tile_x + vector * steps * tile_rows * W,
                  packed + c * kNc * whole(task.k) + vector * steps * kNc * W, steps, below, folded,
                  mine + folded * sizes.level);
        }
      }
      const float* sums = levels + kFolds * sizes.level;
      for (size_t row = 0; row < tile_rows; ++row) {
        for (size_t column = 0; column < rows; ++column) {
          const float* lanes = sums + ((column / kNc * V::kTileRows + row) * kNc + column % kNc) * W;
          finish(task, tiles.first(t) + row, first + column, weight + column * task.k, V::fold(V::load(lanes)));
        }
      }
    }
  }

  static constexpr Kernel kKernel = {packed_bytes, scratch_bytes, panel_rows, pack, multiply};
};

}  // namespace
}  // namespace zipmoe::linear

#endif
