// Helper threads for parallel loops, for machines with other threads on the same cores. The caller never waits for a
// helper that has not begun, so a helper without a core costs only its own share of the work.
#ifndef ZIPMOE_KERNELS_WORKER_POOL_H
#define ZIPMOE_KERNELS_WORKER_POOL_H

#include <stddef.h>

namespace zipmoe {

// Calls run(context, index) for every index in [0, count), on the calling thread and on up to threads - 1 helpers, in
// any order. Returns when all calls have ended. A second caller at the same time runs on its own thread alone. A forked
// child starts its own helpers.
void run_on_pool(size_t threads, size_t count, void (*run)(void* context, size_t index), void* context);

}  // namespace zipmoe

#endif
