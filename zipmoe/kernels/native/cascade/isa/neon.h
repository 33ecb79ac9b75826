// 64 weights of a cascade with NEON.
#ifndef ZIPMOE_KERNELS_CASCADE_ISA_NEON_H
#define ZIPMOE_KERNELS_CASCADE_ISA_NEON_H

#include <arm_neon.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::cascade::isa {

struct Neon {
  static constexpr MergePlanes kMerge = merge_planes_neon;
  static constexpr bool kStreams = false;

  using Ranks = uint8x16x4_t;
  using Table = uint8x16_t;

  static inline uint8x16_t rank_quarter(uint8x16_t code, uint8x16_t first, const uint8_t*& escapes) {
    const uint8x16_t zero = vdupq_n_u8(0);
    const uint8x16_t escaped = vceqq_u8(code, vdupq_n_u8(3));
    // Minus the number of escapes up to each weight. The complement is the index of the weight's escape.
    uint8x16_t sum = vaddq_u8(escaped, vextq_u8(zero, escaped, 15));
    sum = vaddq_u8(sum, vextq_u8(zero, sum, 14));
    sum = vaddq_u8(sum, vextq_u8(zero, sum, 12));
    sum = vaddq_u8(sum, vextq_u8(zero, sum, 8));
    const uint8x16_t next = vqtbl1q_u8(vld1q_u8(escapes), vmvnq_u8(sum));
    escapes += static_cast<uint8_t>(-vgetq_lane_u8(sum, 15));
    return vbslq_u8(escaped, next, vaddq_u8(code, first));
  }

  static inline Ranks ranks(const uint8_t* codes, uint8_t first, const uint8_t*& escapes) {
    const uint8x16_t bytes = vld1q_u8(codes), pair = vdupq_n_u8(3), add = vdupq_n_u8(first);
    Ranks ranks;
    ranks.val[0] = rank_quarter(vandq_u8(bytes, pair), add, escapes);
    ranks.val[1] = rank_quarter(vandq_u8(vshrq_n_u8(bytes, 2), pair), add, escapes);
    ranks.val[2] = rank_quarter(vandq_u8(vshrq_n_u8(bytes, 4), pair), add, escapes);
    ranks.val[3] = rank_quarter(vshrq_n_u8(bytes, 6), add, escapes);
    return ranks;
  }

  static inline void store(const Ranks& ranks, uint8_t* out) {
    for (int quarter = 0; quarter < 4; ++quarter) vst1q_u8(out + 16 * quarter, ranks.val[quarter]);
  }

  static inline Table table(const uint8_t* bytes) { return vld1q_u8(bytes); }

  static inline void exponents(const Ranks& ranks, Table table, uint8_t* e) {
    for (int quarter = 0; quarter < 4; ++quarter) vst1q_u8(e + 16 * quarter, vqtbl1q_u8(table, ranks.val[quarter]));
  }

  template <bool kStream = false>
  static inline void weights(const Ranks& ranks, Table table, const uint8_t* sm, uint8_t* bf16) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint8x16_t s = vld1q_u8(sm + 16 * quarter);
      const uint8x16_t x = vqtbl1q_u8(table, ranks.val[quarter]);
      // Shift-and-insert keeps the bits of s that the shifted exponent does not reach: mantissa below, sign above.
      const uint8x16x2_t weight = {{vsliq_n_u8(s, x, 7), vsriq_n_u8(s, x, 1)}};
      vst2q_u8(bf16 + 32 * quarter, weight);
    }
  }
};

}  // namespace zipmoe::cascade::isa

#endif
