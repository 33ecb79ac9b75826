// The order "lanes" from a cascade chunk, for few rows of x: recovered weights are widened in registers. V offers, in
// addition to the list of linear/lanes.h:
//   void widen(halves, w), widen(bf16, w)  widens 64 weights to kVectors vectors of lanes, in V's own order, from an
//                                          Isa's halves or from memory. Both halves of the 64 have the same order.
//   float fold(sum)                        folds such vectors in the order "lanes"
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_CASCADE_H
#define ZIPMOE_KERNELS_LINEAR_LANES_CASCADE_H

#include "linear/cascade.h"
#include "linear/lanes.h"

namespace zipmoe::linear {
namespace {

template <class V, class Isa>
struct LaneBlocks {
  using Vector = typename V::Vector;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kVectors = kAllLanes / W;
  static_assert(kAllLanes == cascade::kGroup);

  static bool takes(const Task& task, const cascade::Chunk&) {
    return task.m <= V::kStreamRows && task.k > 0 && task.k % kAllLanes == 0;
  }

  static size_t packed_bytes(size_t m, size_t k) { return m * k * sizeof(float); }

  static void pack(const Task& task, void* packed) {
    float* to = static_cast<float*>(packed);
    for (size_t i = 0; i < task.m * task.k; i += kAllLanes) {
      Vector x[kVectors];
      V::widen(reinterpret_cast<const uint8_t*>(task.x + i), x);
      for (size_t v = 0; v < kVectors; ++v) V::store(to + i + v * W, x[v]);
    }
  }

  template <size_t M>
  static bool multiply_by(const Task& task, const float* x, const cascade::Block& block, cascade::Scratch* scratch,
                          const uint8_t* sm, size_t first, const Ahead& ahead) {
    cascade::Rows<Isa> rows(block, scratch);
    size_t group = 0;
    for (uint32_t row = 0; row < block.rows; ++row, sm += task.k) {
      Vector sum[M][kVectors];
      Lanes<V>::template each<M, kVectors>([&](size_t m, size_t v) { sum[m][v] = V::zero(); });
      const auto add = [&](uint32_t column, const auto& weights) __attribute__((always_inline)) {
        Vector w[kVectors];
        V::widen(weights, w);
        ahead.bring(group++);
        Lanes<V>::template each<M, kVectors>([&](size_t m, size_t v) {
          sum[m][v] = V::multiply_add(V::load(x + m * task.k + column + v * W), w[v], sum[m][v]);
        });
      };
      rows.halves(sm, add, add);
      for (size_t m = 0; m < M; ++m) {
        const size_t column = first + row;
        task.out[m * task.n + column] = round_one(Lanes<V>::add_rest(task, m, column, nullptr, V::fold(sum[m])));
      }
    }
    return rows.done();
  }

  template <size_t M>
  static bool multiply_any(const Task& task, const float* x, const cascade::Block& block, cascade::Scratch* scratch,
                           const uint8_t* sm, size_t first, const Ahead& ahead) {
    if constexpr (M > 1) {
      if (task.m < M) return multiply_any<M - 1>(task, x, block, scratch, sm, first, ahead);
    }
    return multiply_by<M>(task, x, block, scratch, sm, first, ahead);
  }

  static bool multiply(const Task& task, const void* packed, const cascade::Block& block, cascade::Scratch* scratch,
                       const uint8_t* sm, size_t first, const Ahead& ahead) {
    return multiply_any<V::kStreamRows>(task, static_cast<const float*>(packed), block, scratch, sm, first, ahead);
  }

  static constexpr BlockKernel kBlocks = {takes, packed_bytes, pack, multiply};
};

}  // namespace
}  // namespace zipmoe::linear

#endif
