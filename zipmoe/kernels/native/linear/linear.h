// bf16 linears, bit for bit in the summation orders of torch on CPUs, and their C interface.
//
//     out[m][n] = bf16(sum over k of x[m][k] * weight[n][k]  + bias[n])
//
// Sums are fp32. An order defines the partial sums. No order depends on m, n or the number of threads, so a row has the
// same bits alone and in a batch.
//
// lanes   64 partial sums, input k in lane k mod 64, ascending, fused multiply-add; lane l += lane l + 32, then + 16,
//         + 8, + 4, + 2, + 1. The last k % 64 inputs are separate: whole sixteens go to 8 lanes (k mod 8), which are
//         folded by + 4, + 2, + 1 and added; the remaining products are added one by one. This is torch's own gemv on
//         AVX2.
// pairs   One partial sum for each block of k_block inputs, pair after pair: first the product of the pair's odd input,
//         then that of the even input, each fused, subnormal numbers taken for zero. Blocks are added in order. With
//         several parts, each part has equally many blocks (the last part may have fewer); the blocks of a part are
//         added first, then the parts in order. This is the order of the instruction vdpbf16ps, and so of oneDNN. With
//         few outputs, oneDNN gives each thread a part.
#ifndef ZIPMOE_KERNELS_LINEAR_H
#define ZIPMOE_KERNELS_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#include "linear/part.h"
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

// Whether the numbers of an order are in range.
inline bool fits(int order, size_t k_block, size_t parts) {
  return order != kPairs || (k_block > 0 && k_block % 32 == 0 && parts > 0);
}

// Inputs of a part: whole blocks, equally many in each part except the last.
inline size_t part_of(size_t k, size_t k_block, size_t parts) {
  if (k_block == 0 || parts <= 1) return SIZE_MAX;
  const size_t blocks = (k + k_block - 1) / k_block;
  return (blocks + parts - 1) / parts * k_block;
}

// One order on one instruction set. Weights come in panels of some rows, at any address; a panel's scratch memory
// should stay in a core's cache. `packed` and `scratch` are aligned to 64 bytes; other memory needs no alignment.
struct Kernel {
  size_t (*packed_bytes)(size_t m, size_t k);
  size_t (*scratch_bytes)(size_t m, size_t k);
  // Best number of rows of weights for a panel. The kernel computes any number.
  size_t (*panel_rows)(size_t m, size_t k);
  // Packs the inputs for `multiply`, once for all panels.
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

// Whether a backend has a vector kernel for an order (1) or uses the scalar kernel (0).
ZIPMOE_EXPORT int zipmoe_linear_is_native(int backend, int order);

// Computes a linear. `bias` may be null. k_block, a multiple of 32, and parts, at least 1, are for the order "pairs"
// only. Returns 0 when done; -1 (nothing written) for an unknown backend or order; -3 (undefined result) without
// memory.
ZIPMOE_EXPORT int zipmoe_linear(int backend, int order, const uint16_t* x, const uint16_t* weight, const uint16_t* bias,
                                uint16_t* out, size_t m, size_t n, size_t k, size_t k_block, size_t parts, size_t threads);

// Computes the outputs of consecutive rows, from output `first` on, in one parallel loop. The kernel recovers the
// weights block by block and never holds all of them in memory, unless the rows of a chunk are not those of the matrix.
// Returns as above, and -2 when a chunk is corrupt or of another size; the outputs are then undefined.
ZIPMOE_EXPORT int zipmoe_linear_cascade(int backend, int order, const uint16_t* x, const zipmoe_part* weights,
                                        size_t count, const uint16_t* bias, uint16_t* out, size_t m, size_t n, size_t k,
                                        size_t k_block, size_t parts, size_t first, size_t threads);

#endif
