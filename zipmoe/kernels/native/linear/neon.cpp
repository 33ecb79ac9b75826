#include "cascade/isa/neon.h"
#include "linear/cascade.h"
#include "linear/lanes_neon.h"

namespace zipmoe::linear {

const Kernel* lanes_neon() { return &Lanes<Neon>::kKernel; }

bool cascade_rows_neon(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm,
                       const Consumer& consumer) {
  return each_row<cascade::isa::Neon>(block, scratch, sm, consumer);
}

}  // namespace zipmoe::linear
