// The C interface of the cascade. Finds the kernels of a backend by the backend's name.
#include <string.h>

#include "cascade/cascade.h"

namespace zipmoe::cascade {
namespace {

struct Kernels {
  const char* name;
  Decompress decompress;
  Recover recover;
};

constexpr Kernels kKernels[] = {
#if defined(__x86_64__)
    {"avx512", decompress_avx512, recover_avx512},
    {"avx2", decompress_avx2, recover_avx2},
#elif defined(__aarch64__)
    {"neon", decompress_neon, recover_neon},
#endif
    {"scalar", decompress_scalar, recover_scalar},
};

const Kernels* kernels_of(int backend) {
  const char* name = zipmoe_backend_name(backend);
  for (const Kernels& kernels : kKernels) {
    if (name != nullptr && strcmp(kernels.name, name) == 0) return &kernels;
  }
  return nullptr;
}

}  // namespace
}  // namespace zipmoe::cascade

int zipmoe_cascade_decompress(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n) {
  const zipmoe::cascade::Kernels* kernels = zipmoe::cascade::kernels_of(backend);
  if (kernels == nullptr) return -1;
  return kernels->decompress(chunk, chunk_bytes, e, n) ? 0 : -2;
}

int zipmoe_cascade_recover(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16,
                           size_t n) {
  const zipmoe::cascade::Kernels* kernels = zipmoe::cascade::kernels_of(backend);
  if (kernels == nullptr) return -1;
  return kernels->recover(chunk, chunk_bytes, sm, bf16, n) ? 0 : -2;
}
