// Linears with compressed weights: recovers the rows of a cascade block, each into the memory that a consumer names.
// One template serves all instruction sets.
#ifndef ZIPMOE_KERNELS_LINEAR_CASCADE_H
#define ZIPMOE_KERNELS_LINEAR_CASCADE_H

#include "cascade/rows.h"
#include "linear/linear.h"

namespace zipmoe::linear {

// Memory of a thread's next turn, which is prefetched to the second-level cache during this turn: one line of sm bytes
// per 64 weights, and a proportional part of the block's payload. Without a next turn both steps are 0.
struct Ahead {
  const uint8_t* sm = nullptr;
  const uint8_t* payload = nullptr;
  size_t sm_step = 0, payload_step = 0;

  // Call before each group of 64 weights, with the number of the group.
  inline __attribute__((always_inline)) void bring(size_t group) const {
    __builtin_prefetch(sm + sm_step * group, 0, 2);
    __builtin_prefetch(payload + payload_step * group, 0, 2);
  }
};

// A linear that computes from a cascade block. The recovered weights stay in registers, or a few of them in the cache.
struct BlockKernel {
  // Whether the kernel computes these shapes. Otherwise rows are recovered to a panel of the order's kernel.
  bool (*takes)(const Task& task, const cascade::Chunk& chunk);
  size_t (*packed_bytes)(size_t m, size_t k);
  void (*pack)(const Task& task, void* packed);
  // Computes the outputs of a block, from output `first`. Returns false if the chunk is corrupt; the outputs are then
  // undefined.
  bool (*multiply)(const Task& task, const void* packed, const cascade::Block& block, cascade::Scratch* scratch,
                   const uint8_t* sm, size_t first, const Ahead& ahead);
};

#if defined(__x86_64__)
const BlockKernel* lanes_blocks_avx2();
const BlockKernel* lanes_blocks_avx512();
const BlockKernel* pairs_blocks_avx512();  // needs avx512_bf16
#endif

struct Consumer {
  uint16_t* (*next)(void* context);  // room for one row; called when the one before is complete
  void* context;
};

// Recovers the rows of a block in order. `sm` is the sm byte of the block's first weight; all rows are whole. Returns
// false if the chunk is corrupt; the rows are then undefined.
template <class Isa>
bool each_row(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm, const Consumer& consumer) {
  cascade::Rows<Isa> rows(block, scratch);
  for (uint32_t row = 0; row < block.rows; ++row, sm += block.cols) {
    rows.weights(sm, reinterpret_cast<uint8_t*>(consumer.next(consumer.context)));
  }
  return rows.done();
}

using EachRow = bool (*)(const cascade::Block&, cascade::Scratch*, const uint8_t* sm, const Consumer&);

bool cascade_rows_scalar(const cascade::Block&, cascade::Scratch*, const uint8_t* sm, const Consumer&);
#if defined(__x86_64__)
bool cascade_rows_avx2(const cascade::Block&, cascade::Scratch*, const uint8_t* sm, const Consumer&);
bool cascade_rows_avx512(const cascade::Block&, cascade::Scratch*, const uint8_t* sm, const Consumer&);
#elif defined(__aarch64__)
bool cascade_rows_neon(const cascade::Block&, cascade::Scratch*, const uint8_t* sm, const Consumer&);
#endif

}  // namespace zipmoe::linear

#endif
