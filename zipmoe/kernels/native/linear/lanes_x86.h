// The last folds of the order "lanes" on x86. Only for files that are compiled with SSE3 or more.
#ifndef ZIPMOE_KERNELS_LINEAR_LANES_X86_H
#define ZIPMOE_KERNELS_LINEAR_LANES_X86_H

#include <immintrin.h>

namespace zipmoe::linear {
namespace {

inline float fold_two(__m128 lanes) { return _mm_cvtss_f32(lanes) + _mm_cvtss_f32(_mm_movehdup_ps(lanes)); }

// Folds eight lanes by + 4, + 2, + 1. The even lanes are in one vector, the odd lanes in the other.
inline float fold_eight(__m128 even, __m128 odd) {
  const __m128 even_two = _mm_add_ps(even, _mm_movehl_ps(even, even));
  const __m128 odd_two = _mm_add_ps(odd, _mm_movehl_ps(odd, odd));
  return fold_two(even_two) + fold_two(odd_two);
}

}  // namespace
}  // namespace zipmoe::linear

#endif
