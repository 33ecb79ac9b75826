#include <arm_neon.h>

#include "linear/lanes_neon.h"
#include "nibble/product.h"

namespace zipmoe::nibble {
namespace {

constexpr size_t kHalf = 16;  // places of an output: eight lanes, two steps

struct Neon : linear::Neon {
  static constexpr size_t kTileRows = 4, kStreamRows = 0, kWidenRows = SIZE_MAX;
  template <size_t R>
  static constexpr size_t kTogether = R <= 2 ? 4 : 2;

  struct Tables {
    uint8x16_t high[kOutputs];  // of each nibble
  };

  static inline Tables tables(const uint8_t* bytes) {
    Tables tables;
    for (size_t output = 0; output < kOutputs; ++output, bytes += kRanks) {
      const uint8x8_t plus = vld1_u8(bytes);
      tables.high[output] = vcombine_u8(plus, vorr_u8(plus, vdup_n_u8(0x80)));
    }
    return tables;
  }

  // The eight lanes of a half in both steps.
  static inline void merge(const uint8_t* group, const Tables& tables, size_t output, size_t half,
                           uint16x8_t (&steps)[kGroupSteps]) {
    const uint8x16_t nibbles = vld1q_u8(group + kGroup + half * kHalf);
    const uint8x16_t ranks = output == 0 ? vandq_u8(nibbles, vdupq_n_u8(0x0f)) : vshrq_n_u8(nibbles, 4);
    const uint8x16_t low = vld1q_u8(group + output * kOutputPlaces + half * kHalf);
    const uint8x16_t high = vqtbl1q_u8(tables.high[output], ranks);
    steps[0] = vreinterpretq_u16_u8(vzip1q_u8(low, high));
    steps[1] = vreinterpretq_u16_u8(vzip2q_u8(low, high));
  }

  static inline void widen(const uint8_t* group, const Tables& tables, Vector* w) {
    for (size_t output = 0; output < kOutputs; ++output) {
      for (size_t half = 0; half < 2; ++half) {
        uint16x8_t steps[kGroupSteps];
        merge(group, tables, output, half, steps);
        for (size_t step = 0; step < kGroupSteps; ++step) {
          Vector* to = w + (step * kOutputs + output) * 4 + 2 * half;
          const uint32x4_t both = vreinterpretq_u32_u16(steps[step]);
          to[0] = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
          to[1] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
        }
      }
    }
  }
};

void recover(const Tile& tile, size_t pass, uint16_t* const* rows) {
  const Neon::Tables tables = Neon::tables(tile.tables);
  const uint8_t* group = tile.groups[pass];
  for (size_t i = 0; i < tile.coded; ++i, group += kGroupBytes) {
    for (size_t output = 0; output < kOutputs; ++output) {
      uint16_t* to = rows[output] + i * kGroupInputs + pass * kPassLanes;
      for (size_t half = 0; half < 2; ++half, to += 8) {
        uint16x8_t steps[kGroupSteps];
        Neon::merge(group, tables, output, half, steps);
        for (size_t step = 0; step < kGroupSteps; ++step) vst1q_u16(to + step * kLanes, steps[step]);
      }
    }
  }
}

size_t code(const Pair& rows, size_t pass, size_t groups, const uint8_t* tables, uint8_t* out, uint8_t* listed,
            size_t most) {
  size_t exceptions = 0;
  for (size_t i = 0; i < groups; ++i, out += kGroupBytes) {
    uint8x16_t all = vdupq_n_u8(0xff);
    uint8_t ranked[kGroup];
    for (size_t half = 0; half < 2; ++half) {
      uint8x16_t nibbles[kOutputs];
      for (size_t output = 0; output < kOutputs; ++output) {
        const uint16_t* from = rows.row[output] + i * kGroupInputs + pass * kPassLanes + half * 8;
        const uint8x16_t first = vreinterpretq_u8_u16(vld1q_u16(from));
        const uint8x16_t second = vreinterpretq_u8_u16(vld1q_u16(from + kLanes));
        const uint8x16_t high = vuzp2q_u8(first, second);
        vst1q_u8(out + output * kOutputPlaces + half * kHalf, vuzp1q_u8(first, second));
        const uint8x16_t exponent = vandq_u8(high, vdupq_n_u8(0x7f));
        uint8x16_t rank = vshrq_n_u8(high, 7), has_rank = vdupq_n_u8(0);
        rank = vshlq_n_u8(rank, 3);
        for (size_t r = 0; r < kRanks; ++r) {
          const uint8x16_t is = vceqq_u8(exponent, vdupq_n_u8(tables[output * kRanks + r]));
          rank = vorrq_u8(rank, vandq_u8(is, vdupq_n_u8(static_cast<uint8_t>(r))));
          has_rank = vorrq_u8(has_rank, is);
        }
        nibbles[output] = rank;
        all = vandq_u8(all, has_rank);
        vst1q_u8(ranked + output * kOutputPlaces + half * kHalf, has_rank);
      }
      vst1q_u8(out + kGroup + half * kHalf, vorrq_u8(nibbles[0], vshlq_n_u8(nibbles[1], 4)));
    }
    if (__builtin_expect(vminvq_u8(all) == 0xff, true)) continue;
    for (size_t place = 0; place < kGroup; ++place) {
      if (ranked[place] != 0) continue;
      if (exceptions < most) {
        put_exception(rows, pass, i * kGroup + place, listed + exceptions * kExceptionBytes);
      }
      ++exceptions;
    }
  }
  return exceptions;
}

constexpr Kernel kKernel = {code,
                            recover,
                            linear::Lanes<Neon>::packed_bytes,
                            linear::Lanes<Neon>::pack,
                            Product<Neon>::scratch_bytes,
                            Product<Neon>::multiply};

}  // namespace

const Kernel* kernel_neon() { return &kKernel; }

}  // namespace zipmoe::nibble
