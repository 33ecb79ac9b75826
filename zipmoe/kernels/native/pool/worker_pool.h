// A few threads that help with loops. Made for machines whose cores are shared with other threads: the caller never waits
// for a helper that has not begun, so a helper that gets no core costs its help and nothing more.
#ifndef ZIPMOE_KERNELS_WORKER_POOL_H
#define ZIPMOE_KERNELS_WORKER_POOL_H

#include <stddef.h>

namespace zipmoe {

// Calls run(context, index) for every index in [0, count), on the calling thread and on up to threads - 1 helpers, in any
// order. Returns when all have been called. A second caller at the same time, and a forked child, work alone.
void run_on_pool(size_t threads, size_t count, void (*run)(void* context, size_t index), void* context);

}  // namespace zipmoe

#endif
