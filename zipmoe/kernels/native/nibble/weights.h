// Weights of nibble form, widened to fp32 lanes in memory. V is as for nibble/product.h.
#ifndef ZIPMOE_KERNELS_NIBBLE_WEIGHTS_H
#define ZIPMOE_KERNELS_NIBBLE_WEIGHTS_H

#include <algorithm>

#include "nibble/nibble.h"

namespace zipmoe::nibble {
namespace {

constexpr size_t kBlockSteps = 32;                         // that are widened at a time
constexpr size_t kStepFloats = kOutputs * kPassLanes;      // of a pass
constexpr size_t kWideFloats = kBlockSteps * kStepFloats;  // of a tile
constexpr size_t kAhead = 8192;                            // bytes that are prefetched to the second-level cache
constexpr size_t kCacheLine = 64;

template <class V>
struct Weights {
  using Vector = typename V::Vector;
  static constexpr size_t W = V::kLanes;
  static constexpr size_t kPassVectors = kPassLanes / W;
  static constexpr size_t kGroupVectors = kGroupSteps * kOutputs * kPassVectors;

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

  // Puts the exceptions of steps [begin, end), which are whole groups.
  static void patch(const Tile& tile, size_t pass, size_t begin, size_t end, float* wide) {
    const size_t groups_begin = begin / kGroupSteps, groups_end = end / kGroupSteps;
    size_t i = 0, above = tile.exceptions[pass];  // the first one that is not in front of the groups
    while (i < above) {
      const size_t middle = i + (above - i) / 2;
      const bool is_in_front = Exception(tile.listed[pass] + middle * kExceptionBytes).place < groups_begin * kGroup;
      (is_in_front ? i : above) = is_in_front ? middle + 1 : middle;
    }
    for (; i < tile.exceptions[pass]; ++i) {
      const Exception exception(tile.listed[pass] + i * kExceptionBytes);
      const size_t group = exception.place / kGroup, input = input_of(exception.place % kGroup, 0);
      if (group >= groups_end) return;
      const size_t step = (group - groups_begin) * kGroupSteps + input / kLanes, lane = input % kLanes;
      // Of each 2 W lanes first the even, then the odd ones.
      const size_t place = lane / (2 * W) * 2 * W + lane % 2 * W + lane % (2 * W) / 2;
      float* weight = wide + step * kStepFloats + output_of(exception.place % kGroup) * kPassLanes + place;
      uint32_t bits;
      memcpy(&bits, weight, sizeof bits);
      bits = (bits & 0x00ff0000) | uint32_t{exception.high} << 24;
      memcpy(weight, &bits, sizeof bits);
    }
  }
};

}  // namespace
}  // namespace zipmoe::nibble

#endif
