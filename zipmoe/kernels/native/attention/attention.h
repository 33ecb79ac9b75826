// Attention of one query row per request over keys and values in pages, bit for bit in the summation orders of torch on
// CPUs, and its C interface. The caller computes the softmax between the two products.
//
//     scores[q][t] = bf16(bf16(sum over i of query[q][i] * key[t][i]) * scaling)
//     out[q][i]    = bf16(sum over t of bf16(weight[q][t]) * value[t][i])
//
// Scores are linears over the keys, in the orders of linear/linear.h; "pairs" has one block here. Sums over tokens are
// fp32, in one of two orders:
//
// fours   Four partial sums, token t in sum t mod 4, ascending, fused multiply-add. The last tokens % 4 tokens go to
//         sum 0; their products are rounded before the addition. At the end sums 1, 2 and 3 are added to sum 0. This is
//         torch's own gemm.
// pairs   One partial sum for each block of tokens, pair after pair, as "pairs" in linear/linear.h. This is oneDNN's
//         order on CPUs with avx512_bf16.
//
// No order depends on the place of a token, on the number of requests or on the number of threads.
#ifndef ZIPMOE_KERNELS_ATTENTION_H
#define ZIPMOE_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::attention {

enum ValueOrder { kFours = 0, kPairs = 1, kValueOrders = 2 };

// Adjacent slots of the pool, with consecutive tokens of a context.
struct Run {
  int64_t slot, tokens;
};

// The start of a context in the arrays that all requests share. The next context's entry is the end.
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

// Whether a backend has a vector kernel for an order of values (1) or uses the scalar kernel (0).
ZIPMOE_EXPORT int zipmoe_attention_is_native(int backend, int order);

// Computes the scores of every request: (heads * groups) rows of the request's tokens, bf16 values stored as fp32.
//   queries   requests x (heads * groups) x numbers, bf16
//   keys      heads x slots x numbers, bf16
//   entries   requests + 1 entries; they index into `runs`
//   scaling   the bits of an fp32 number
//   order     an order of linear/linear.h
// Returns 0 when done; -1 (nothing written) for an unknown backend or order; -3 (undefined result) without memory.
ZIPMOE_EXPORT int zipmoe_attention_scores(int backend, int order, const uint16_t* queries, const uint16_t* keys,
                                          const int64_t* entries, const int64_t* runs, float* scores, size_t requests,
                                          size_t heads, size_t groups, size_t numbers, size_t slots, uint32_t scaling,
                                          size_t threads);

// Computes the outputs, requests x (heads * groups) x numbers, bf16, from fp32 weights in the layout of the scores.
// `block` is for the order "pairs" only, and even. Returns as above.
ZIPMOE_EXPORT int zipmoe_attention_values(int backend, int order, const float* weights, const uint16_t* values,
                                          const int64_t* entries, const int64_t* runs, uint16_t* out, size_t requests,
                                          size_t heads, size_t groups, size_t numbers, size_t slots, size_t block,
                                          size_t threads);

#endif
