// Weights of a linear that are still compressed: the rows of a cascade's block, each to where its consumer wants it. One
// template, for every instruction set that decodes.
#ifndef ZIPMOE_KERNELS_LINEAR_CASCADE_H
#define ZIPMOE_KERNELS_LINEAR_CASCADE_H

#include "cascade/rows.h"
#include "linear/linear.h"

namespace zipmoe::linear {

// What a thread computes next: brought to the second-level cache meanwhile, a line of sm bytes for every 64 weights and
// as much of the block's payload. Where nothing is next, the same line again and again.
struct Ahead {
  const uint8_t* sm = nullptr;
  const uint8_t* payload = nullptr;
  size_t sm_step = 0, payload_step = 0;

  // Before each group of 64 weights; `group` counts them.
  inline __attribute__((always_inline)) void bring(size_t group) const {
    __builtin_prefetch(sm + sm_step * group, 0, 2);
    __builtin_prefetch(payload + payload_step * group, 0, 2);
  }
};

// A linear straight from a cascade's block, whose weights are in no memory at all, or only a few of them at a time.
struct BlockKernel {
  // Whether it computes these shapes; otherwise rows are decoded to a panel of the order's kernel.
  bool (*takes)(const Task& task, const cascade::Chunk& chunk);
  size_t (*packed_bytes)(size_t m, size_t k);
  void (*pack)(const Task& task, void* packed);
  // The outputs of a block, from `first`. False: the chunk is corrupt, and so are the outputs.
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

// Decodes the rows of a block in order. `sm` is that of the block's first weight, all rows are whole. False: the chunk is
// corrupt, and so are the rows.
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
