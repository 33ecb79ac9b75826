// The order "lanes" with NEON, for linear/lanes.h.
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_NEON_H
#define ZIPMOE_KERNELS_LINEAR_LANES_NEON_H

#include <arm_neon.h>

#include "linear/lanes.h"

namespace zipmoe::linear {
namespace {

struct Neon {
  static constexpr size_t kLanes = 4, kTileRows = 8, kWidenRows = 48, kStreamRows = 1, kFolded = 4;
  using Vector = float32x4_t;

  static inline Vector zero() { return vdupq_n_f32(0); }
  static inline Vector load(const float* from) { return vld1q_f32(from); }
  static inline void store(float* to, Vector v) { vst1q_f32(to, v); }
  static inline Vector even(const uint16_t* bf16) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(bf16)), 16));
  }
  static inline Vector odd(const uint16_t* bf16) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(bf16)), vdupq_n_u32(0xffff0000)));
  }
  static inline void prefetch(const uint16_t* at) { __builtin_prefetch(at + 512); }
  static inline void prefetch_far(const char* line) { __builtin_prefetch(line, 0, 2); }
  static inline Vector keep(Vector v) {
    __asm__("" : "+w"(v));
    return v;
  }
  static inline Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static inline Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  // Folds four vectors to one: lane i is the folded vector i.
  static inline Vector fold(const Vector* v) {
    Vector two[2];
    for (int i = 0; i < 2; ++i) {
      const Vector a = v[2 * i], b = v[2 * i + 1];
      two[i] = vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    return vpaddq_f32(two[0], two[1]);
  }
  static inline void fold(const Vector* e, const Vector* o, float* to) {
    vst1q_f32(to, vaddq_f32(fold(e), fold(o)));
  }
};

}  // namespace
}  // namespace zipmoe::linear

#endif
