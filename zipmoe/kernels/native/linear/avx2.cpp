#include "cascade/isa/avx2.h"
#include "linear/cascade.h"
#include "linear/lanes_avx2.h"
#include "linear/lanes_cascade.h"

namespace zipmoe::linear {

const BlockKernel* lanes_blocks_avx2() { return &LaneBlocks<Avx2, cascade::isa::Avx2>::kBlocks; }

const Kernel* lanes_avx2() { return &Lanes<Avx2>::kKernel; }

bool cascade_rows_avx2(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm,
                       const Consumer& consumer) {
  return each_row<cascade::isa::Avx2>(block, scratch, sm, consumer);
}

}  // namespace zipmoe::linear
