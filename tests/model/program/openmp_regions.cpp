// Counts the parallel regions of OpenMP; loaded before the program's own libraries.
#include <dlfcn.h>

#include <atomic>

namespace {
std::atomic<long> regions{0};
}

extern "C" {

long openmp_regions() { return regions; }

void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Parallel next = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  ++regions;
  next(run, data, threads, flags);
}
}
