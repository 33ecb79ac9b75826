// Weights of a linear that are still compressed: the rows of a cascade's block, each to where its consumer wants it. One
// template, for every instruction set that decodes.
#ifndef ZIPMOE_KERNELS_LINEAR_CASCADE_H
#define ZIPMOE_KERNELS_LINEAR_CASCADE_H

#include "cascade_rows.h"

namespace zipmoe::linear {

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
