#include <immintrin.h>

#include "planes/planes.h"

namespace zipmoe {

void merge_planes_avx2(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n) {
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    // The unpacks below interleave within 128-bit halves. Swapping the middle quarters first gives contiguous results.
    const __m256i s = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sm + i)), 0xd8);
    const __m256i x = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(e + i)), 0xd8);
    // AVX2 has no 8-bit shift: shift 16-bit lanes and mask the bits of the neighbour away.
    const __m256i low = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(x, 7), sign), _mm256_andnot_si256(sign, s));
    const __m256i high = _mm256_or_si256(_mm256_andnot_si256(sign, _mm256_srli_epi16(x, 1)), _mm256_and_si256(sign, s));
    __m256i* out = reinterpret_cast<__m256i*>(bf16 + 2 * i);
    _mm256_storeu_si256(out, _mm256_unpacklo_epi8(low, high));
    _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi8(low, high));
  }
  merge_planes_scalar(sm + i, e + i, bf16 + 2 * i, n - i);
}

void split_planes_avx2(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n) {
  const __m256i byte = _mm256_set1_epi16(0x00ff);
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i* in = reinterpret_cast<const __m256i*>(bf16 + 2 * i);
    const __m256i a = _mm256_loadu_si256(in);
    const __m256i b = _mm256_loadu_si256(in + 1);
    const __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    const __m256i exponent = _mm256_packus_epi16(_mm256_and_si256(_mm256_srli_epi16(a, 7), byte),
                                                 _mm256_and_si256(_mm256_srli_epi16(b, 7), byte));
    const __m256i s = _mm256_or_si256(_mm256_and_si256(sign, high), _mm256_andnot_si256(sign, low));
    // packus works within 128-bit halves, so the middle quarters of its result are swapped.
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sm + i), _mm256_permute4x64_epi64(s, 0xd8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(e + i), _mm256_permute4x64_epi64(exponent, 0xd8));
  }
  split_planes_scalar(bf16 + 2 * i, sm + i, e + i, n - i);
}

}  // namespace zipmoe
