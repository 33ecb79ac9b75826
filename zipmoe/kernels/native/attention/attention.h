// Attention of one query row a request over keys and values that lie in pages, bit for bit in the summation orders that
// torch uses on CPUs, and the C interface over it. The softmax between the two products is the caller's.
//
//     scores[q][t] = bf16(bf16(sum over i of query[q][i] * key[t][i]) * scaling)
//     out[q][i]    = bf16(sum over t of bf16(weight[q][t]) * value[t][i])
//
// Scores are linears over the keys, in the orders of linear/linear.h; "pairs" in one block. Sums over tokens are fp32, in one of
//
// fours   Four partial sums, token t in sum t mod 4, ascending, fused multiply-add; the tokens % 4 last ones in sum 0,
//         whose products are rounded before they are added; then sum 1, 2 and 3 are added to it. torch's own gemm.
// pairs   One partial sum for each block of tokens, pair after pair of them, as "pairs" in linear/linear.h. oneDNN's order on
//         CPUs with avx512_bf16.
//
// No order depends on where a token lies, on the number of requests or on the number of threads.
#ifndef ZIPMOE_KERNELS_ATTENTION_H
#define ZIPMOE_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::attention {

enum ValueOrder { kFours = 0, kPairs = 1, kValueOrders = 2 };

// Adjacent slots of the pool that hold the next tokens of a context.
struct Run {
  int64_t slot, tokens;
};

// Where a context begins in the arrays that all requests share; the next one's entry says where it ends.
struct Entry {
  int64_t run, token;
};

// Sizes of the arrays: blocks of keys and of values have shape (heads, slots, numbers).
struct Sizes {
  size_t requests, heads, groups, numbers, slots;  // groups: query heads that share a head of keys and values
};

// The sums over the tokens of one context, for the query heads that share a head.
struct Values {
  const float* weights;    // groups rows of tokens
  const uint16_t* values;  // of the head: slots rows of numbers
  uint16_t* out;           // groups rows of numbers
  const Run* runs;
  size_t tokens, groups, numbers, block;
};

struct Kernel {
  size_t (*scratch_bytes)(const Values& task);
  void (*sum)(const Values& task, void* scratch);  // scratch is aligned to 64 bytes
};

const Kernel* kernel_scalar(ValueOrder order);
#if defined(__x86_64__)
const Kernel* fours_avx2();
const Kernel* pairs_avx512();  // needs avx512_bf16
#elif defined(__aarch64__)
const Kernel* fours_neon();
#endif

}  // namespace zipmoe::attention

// Whether a backend has a vector kernel for an order of values (1), or takes the scalar one (0).
ZIPMOE_EXPORT int zipmoe_attention_is_native(int backend, int order);

// The scores of every request: for each one, (heads * groups) rows of its tokens, fp32 numbers that are bf16.
//   queries   requests x (heads * groups) x numbers, bf16
//   keys      heads x slots x numbers, bf16
//   entries   requests + 1 entries; runs are those that they count
//   scaling   the bits of an fp32 number
//   order     of linear/linear.h
// 0 when done; -1 (nothing written) when there is no such backend or order; -3 (undefined result) without memory.
ZIPMOE_EXPORT int zipmoe_attention_scores(int backend, int order, const uint16_t* queries, const uint16_t* keys,
                                          const int64_t* entries, const int64_t* runs, float* scores, size_t requests,
                                          size_t heads, size_t groups, size_t numbers, size_t slots, uint32_t scaling,
                                          size_t threads);

// The outputs, requests x (heads * groups) x numbers, bf16, from fp32 weights that are laid out as the scores.
// `block` counts for the order "pairs" only and is even. Results as above.
ZIPMOE_EXPORT int zipmoe_attention_values(int backend, int order, const float* weights, const uint16_t* values,
                                          const int64_t* entries, const int64_t* runs, uint16_t* out, size_t requests,
                                          size_t heads, size_t groups, size_t numbers, size_t slots, size_t block,
                                          size_t threads);

#endif
