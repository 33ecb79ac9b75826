// Linear layers on bf16, bit for bit in the summation orders that torch uses on CPUs, and the C interface over them.
//
//     out[m][n] = bf16(sum over k of x[m][k] * weight[n][k]  + bias[n])
//
// Sums are fp32; what an order fixes is which partial sums there are. No order depends on m, n or the number of threads,
// so a row has the same bits alone and among others.
//
// lanes   64 partial sums, k in lane k mod 64, ascending, fused multiply-add; lane l += lane l + 32, then + 16, + 8, + 4,
//         + 2, + 1. The k % 64 last ones apart: in whole sixteens into 8 lanes (k mod 8), folded by + 4, + 2, + 1 and
//         added; what is still left is added one by one. torch's own gemv on AVX2.
// pairs   One partial sum for each block of k_block inputs, pair after pair of them: the odd one's product first, then
//         the even one's, each fused, subnormal numbers taken for zero. Blocks are added in order; in several parts
//         of equally many blocks, the last one perhaps of fewer, each part by itself, and then the parts in order.
//         This is what vdpbf16ps does, and oneDNN with it, which lets threads share few outputs by parts.
#ifndef ZIPMOE_KERNELS_LINEAR_H
#define ZIPMOE_KERNELS_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::linear {

enum Order { kLanes = 0, kPairs = 1, kOrders = 2 };

struct Task {
  const uint16_t* x;     // m rows of k
  const uint16_t* bias;  // n, or null
  uint16_t* out;         // m rows of n
  size_t m, n, k;
  size_t k_block;  // kPairs: a multiple of 32
  size_t k_part;   // kPairs: a multiple of k_block
  bool cached;     // whether the weights are in cache already, so that nothing is to be prefetched
};

// One order on one instruction set. Weights come in panels of some rows, from wherever they are; a panel's scratch memory
// should stay in a core's cache. Nothing needs alignment but `packed` and `scratch`, which are aligned to 64 bytes.
struct Kernel {
  size_t (*packed_bytes)(size_t m, size_t k);
  size_t (*scratch_bytes)(size_t m, size_t k);
  // How many rows of weights a panel should have. Any number is computed.
  size_t (*panel_rows)(size_t m, size_t k);
  // Brings the inputs into the form that `multiply` wants, once for all panels.
  void (*pack)(const Task& task, void* packed);
  // Computes outputs first .. first + rows - 1 of every row of x; `weight` is the weight row of the first of them.
  void (*multiply)(const Task& task, const void* packed, const uint16_t* weight, size_t first, size_t rows,
                   void* scratch);
};

const Kernel* kernel_scalar(Order order);
#if defined(__x86_64__)
const Kernel* lanes_avx2();
const Kernel* lanes_avx512();
const Kernel* pairs_avx512();  // needs avx512_bf16
#elif defined(__aarch64__)
const Kernel* lanes_neon();
#endif

}  // namespace zipmoe::linear

// Whether a backend has a vector kernel of its own for an order (1), or takes a slower one's (0).
ZIPMOE_EXPORT int zipmoe_linear_is_native(int backend, int order);

// Computes a linear. `bias` may be null; k_block and parts count for the order "pairs" only: a multiple of 32, and how
// many parts the inputs are summed in, at least 1.
// 0 when done; -1 (nothing written) when there is no such backend or order; -3 (nothing written) without memory.
ZIPMOE_EXPORT int zipmoe_linear(int backend, int order, const uint16_t* x, const uint16_t* weight, const uint16_t* bias,
                                uint16_t* out, size_t m, size_t n, size_t k, size_t k_block, size_t parts, size_t threads);

// The same for outputs first .. first + rows - 1, whose weights are an e-chunk of the codec "cascade", any bytes, and
// rows * k sm bytes. They are decoded block by block and never written to memory, unless the chunk's rows are not those
// of the matrix.
// As above, and -2 when the chunk is corrupt or of another size; the outputs are undefined then.
ZIPMOE_EXPORT int zipmoe_linear_cascade(int backend, int order, const uint16_t* x, const uint8_t* chunk,
                                        size_t chunk_bytes, const uint8_t* sm, const uint16_t* bias, uint16_t* out,
                                        size_t m, size_t n, size_t k, size_t k_block, size_t parts, size_t first,
                                        size_t rows, size_t threads);

#endif
