// Detects the backends that the CPU can run, once, and has the C interface of the plane kernels.
#include "planes/planes.h"

namespace zipmoe {
namespace {

struct Backend {
  const char* name;
  MergePlanes merge;
  SplitPlanes split;
};

#if defined(__x86_64__)
// Whether the CPU has all extensions that the avx512 kernels are compiled for, with AVX2 and POPCNT. The first such
// CPUs are Ice Lake and Zen 4.
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}
#endif

// Fastest first; the scalar backend is always last.
struct Backends {
  Backend usable[3];
  int count = 0;

  Backends() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512()) {
      usable[count++] = {"avx512", merge_planes_avx2, split_planes_avx2};
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) {
      usable[count++] = {"avx2", merge_planes_avx2, split_planes_avx2};
    }
#elif defined(__aarch64__)
    usable[count++] = {"neon", merge_planes_neon, split_planes_neon};
#endif
    usable[count++] = {"scalar", merge_planes_scalar, split_planes_scalar};
  }
};

const Backends backends;

}  // namespace
}  // namespace zipmoe

int zipmoe_backend_count(void) { return zipmoe::backends.count; }

const char* zipmoe_backend_name(int backend) {
  if (backend < 0 || backend >= zipmoe::backends.count) return nullptr;
  return zipmoe::backends.usable[backend].name;
}

int zipmoe_merge_planes(int backend, const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n) {
  if (backend < 0 || backend >= zipmoe::backends.count) return -1;
  zipmoe::backends.usable[backend].merge(sm, e, bf16, n);
  return 0;
}

int zipmoe_split_planes(int backend, const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n) {
  if (backend < 0 || backend >= zipmoe::backends.count) return -1;
  zipmoe::backends.usable[backend].split(bf16, sm, e, n);
  return 0;
}
