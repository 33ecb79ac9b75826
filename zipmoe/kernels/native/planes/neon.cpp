#include <arm_neon.h>

#include "planes/planes.h"

namespace zipmoe {

void merge_planes_neon(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const uint8x16_t s = vld1q_u8(sm + i);
    const uint8x16_t x = vld1q_u8(e + i);
    // Shift-and-insert keeps the bits of s that the shifted exponent does not reach: mantissa below, sign above.
    const uint8x16x2_t weight = {{vsliq_n_u8(s, x, 7), vsriq_n_u8(s, x, 1)}};
    vst2q_u8(bf16 + 2 * i, weight);
  }
  merge_planes_scalar(sm + i, e + i, bf16 + 2 * i, n - i);
}

void split_planes_neon(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n) {
  const uint8x16_t sign = vdupq_n_u8(0x80);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const uint8x16x2_t weight = vld2q_u8(bf16 + 2 * i);
    vst1q_u8(sm + i, vbslq_u8(sign, weight.val[1], weight.val[0]));
    vst1q_u8(e + i, vsriq_n_u8(vshlq_n_u8(weight.val[1], 1), weight.val[0], 7));
  }
  split_planes_scalar(bf16 + 2 * i, sm + i, e + i, n - i);
}

}  // namespace zipmoe
