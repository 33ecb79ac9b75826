#include <arm_neon.h>

#include "linear_lanes.h"

namespace zipmoe::linear {
namespace {

struct Neon {
  static constexpr size_t kLanes = 4, kTileRows = 8, kStreamRows = 1, kStreamColumns = 1;
  using Vector = float32x4_t;

  static inline Vector zero() { return vdupq_n_f32(0); }
  static inline Vector load(const float* from) { return vld1q_f32(from); }
  static inline void store(float* to, Vector v) { vst1q_f32(to, v); }
  static inline Vector widen(const uint16_t* bf16) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bf16), 16));
  }
  static inline Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static inline float fold(Vector v) {
    const float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
};

}  // namespace

const Kernel* lanes_neon() { return &Lanes<Neon>::kKernel; }

}  // namespace zipmoe::linear
