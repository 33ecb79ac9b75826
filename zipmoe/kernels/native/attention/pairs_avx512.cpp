// The order "pairs" of values, with the bf16 dot product of AVX-512: two tokens per step, numbers in vectors.
#include <immintrin.h>

#include "attention/math.h"

namespace zipmoe::attention {
namespace {

constexpr size_t kLoad = 32;         // numbers of a vector of values
constexpr size_t kMostQueries = 4;   // query heads that are computed together
constexpr size_t kAheadBytes = 4096;

inline size_t stride_of(const Values& task) { return (task.tokens + 63) / 64 * 32; }  // pairs of weights of a query head

size_t scratch_bytes(const Values& task) { return task.groups * stride_of(task) * sizeof(int32_t); }

// Packs weights as pairs of bf16. The partner of a last single token is zero.
void pack(const Values& task, int32_t* pairs) {
  for (size_t group = 0; group < task.groups; ++group, pairs += stride_of(task)) {
    const float* weights = task.weights + group * task.tokens;
    for (size_t t = 0; t < task.tokens; t += 16) {
      const size_t left = task.tokens - t;
      const __mmask16 some = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, weights + t));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + t / 2), reinterpret_cast<__m256i>(rounded));
    }
  }
}

inline __m512 multiply_add(__m512 sum, __m512i values, __m512i weights) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(values), reinterpret_cast<__m512bh>(weights));
}

// Numbers that are computed together for Q query heads: L vectors of 32, or a part of one vector.
template <size_t Q, size_t L>
struct Tile {
  const int32_t* pairs;
  size_t stride;
  __mmask32 some;
  __m512 sum[Q][2 * L];  // of each vector the numbers 0-3 of every eight, then 4-7

  inline __m512i load(const uint16_t* row, size_t vector) const {
    if (L > 1) return _mm512_loadu_si512(row + vector * kLoad);
    return _mm512_maskz_loadu_epi16(some, row);
  }

  inline void step(size_t pair, const uint16_t* even, const uint16_t* odd) {
    __m512i weight[Q];
    for (size_t q = 0; q < Q; ++q) weight[q] = _mm512_set1_epi32(pairs[q * stride + pair]);
    for (size_t v = 0; v < L; ++v) {
      const __m512i a = load(even, v), b = odd == nullptr ? _mm512_setzero_si512() : load(odd, v);
      const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
      for (size_t q = 0; q < Q; ++q) {
        sum[q][2 * v] = multiply_add(sum[q][2 * v], low, weight[q]);
        sum[q][2 * v + 1] = multiply_add(sum[q][2 * v + 1], high, weight[q]);
      }
    }
  }

  inline void run(const Values& task, size_t number, uint16_t* out) {
    __m512 total[Q][2 * L];
    Tokens tokens(task, number);
    for (size_t begin = 0; begin < task.tokens; begin += task.block) {
      const size_t end = begin + task.block < task.tokens ? begin + task.block : task.tokens;
      for (size_t q = 0; q < Q; ++q) {
        for (size_t i = 0; i < 2 * L; ++i) sum[q][i] = _mm512_setzero_ps();
      }
      size_t t = begin;
      for (; t + 2 <= end; t += 2) {
        const uint16_t* even = tokens.next();
        _mm_prefetch(reinterpret_cast<const char*>(even) + kAheadBytes, _MM_HINT_T0);
        const uint16_t* odd = tokens.next();
        _mm_prefetch(reinterpret_cast<const char*>(odd) + kAheadBytes, _MM_HINT_T0);
        step(t / 2, even, odd);
      }
      if (t < end) step(t / 2, tokens.next(), nullptr);
      for (size_t q = 0; q < Q; ++q) {
        for (size_t i = 0; i < 2 * L; ++i) total[q][i] = begin == 0 ? sum[q][i] : _mm512_add_ps(total[q][i], sum[q][i]);
      }
    }
    const __m512i in_order = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    for (size_t q = 0; q < Q; ++q) {
      for (size_t v = 0; v < L; ++v) {
        const __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(total[q][2 * v]));
        const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(total[q][2 * v + 1]));
        const __m512i both = _mm512_permutex2var_epi64(_mm512_castsi256_si512(low), in_order, _mm512_castsi256_si512(high));
        _mm512_mask_storeu_epi16(out + q * task.numbers + v * kLoad, some, both);
      }
    }
  }
};

template <size_t Q, size_t L>
void run(const Values& task, const int32_t* pairs, size_t number, __mmask32 some, uint16_t* out) {
  Tile<Q, L> tile;
  tile.pairs = pairs;
  tile.stride = stride_of(task);
  tile.some = some;
  tile.run(task, number, out + number);
}

// Takes as many vectors at once as the registers of Q query heads allow.
template <size_t Q>
void sum_queries(const Values& task, const int32_t* pairs, uint16_t* out) {
  constexpr size_t kVectors = Q <= 2 ? 4 : 2;
  size_t number = 0;
  for (; number + kVectors * kLoad <= task.numbers; number += kVectors * kLoad) {
    run<Q, kVectors>(task, pairs, number, ~0u, out);
  }
  for (; number < task.numbers; number += kLoad) {
    const size_t left = task.numbers - number;
    run<Q, 1>(task, pairs, number, left >= kLoad ? ~0u : (1u << left) - 1, out);
  }
}

using SumQueries = void (*)(const Values&, const int32_t*, uint16_t*);
constexpr SumQueries kSumQueries[kMostQueries] = {sum_queries<1>, sum_queries<2>, sum_queries<3>, sum_queries<4>};

void sum(const Values& task, void* scratch) {
  int32_t* pairs = static_cast<int32_t*>(scratch);
  pack(task, pairs);
  for (size_t group = 0; group < task.groups;) {
    const size_t queries = task.groups - group < kMostQueries ? task.groups - group : kMostQueries;
    kSumQueries[queries - 1](task, pairs + group * stride_of(task), task.out + group * task.numbers);
    group += queries;
  }
}

constexpr Kernel kKernel = {scratch_bytes, sum};

}  // namespace

const Kernel* pairs_avx512() { return &kKernel; }

}  // namespace zipmoe::attention
