// The kernels that compute an order on a backend.
#ifndef ZIPMOE_KERNELS_LINEAR_BACKEND_H
#define ZIPMOE_KERNELS_LINEAR_BACKEND_H

#include "linear/linear.h"
#include "linear/cascade.h"

namespace zipmoe::linear {

struct Backend {
  const Kernel* kernel = nullptr;
  bool native = false;
  EachRow cascade_rows = cascade_rows_scalar;
  const BlockKernel* blocks = nullptr;  // null: there is none
};

// Finds the kernels of a backend and an order. The kernel is null for an unknown backend or order.
Backend backend_of(int index, int order);

}  // namespace zipmoe::linear

#endif
