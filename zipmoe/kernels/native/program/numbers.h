// Conversions between bf16 and fp32, as torch rounds.
#ifndef ZIPMOE_KERNELS_PROGRAM_NUMBERS_H
#define ZIPMOE_KERNELS_PROGRAM_NUMBERS_H

#include <stdint.h>
#include <string.h>

// Compiles a function for AVX2 as well; the loader chooses. The file must not contract products and sums.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define ZIPMOE_ALSO_AVX2 __attribute__((target_clones("avx2", "default")))
#else
#define ZIPMOE_ALSO_AVX2
#endif

namespace zipmoe::program {

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

// To the nearest, ties to even; a NaN becomes 0x7fc0.
inline uint16_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
}

}  // namespace zipmoe::program

#endif
