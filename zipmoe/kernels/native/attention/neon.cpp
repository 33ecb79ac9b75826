#include <arm_neon.h>

#include "attention/fours.h"

namespace zipmoe::attention {
namespace {

struct Neon {
  static constexpr size_t kLanes = 4;
  using Vector = float32x4_t;

  static inline Vector load(const float* from) { return vld1q_f32(from); }
  static inline void store(float* to, Vector v) { vst1q_f32(to, v); }
  static inline Vector all(float value) { return vdupq_n_f32(value); }
  static inline uint32x4_t both(const uint16_t* bf16) { return vreinterpretq_u32_u16(vld1q_u16(bf16)); }
  static inline Vector even(const uint16_t* bf16) { return vreinterpretq_f32_u32(vshlq_n_u32(both(bf16), 16)); }
  static inline Vector odd(const uint16_t* bf16) {
    return vreinterpretq_f32_u32(vandq_u32(both(bf16), vdupq_n_u32(0xffff0000)));
  }
  static inline Vector add_product(Vector sum, Vector a, Vector b) { return vfmaq_f32(sum, a, b); }
  // Rounds twice: the file is compiled with -ffp-contract=off.
  static inline Vector add_rounded(Vector sum, Vector a, Vector b) { return vaddq_f32(sum, vmulq_f32(a, b)); }
};

}  // namespace

const Kernel* fours_neon() { return &Fours<Neon>::kKernel; }

}  // namespace zipmoe::attention
