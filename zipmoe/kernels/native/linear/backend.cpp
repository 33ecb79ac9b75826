#include "linear/backend.h"

#include <string.h>

namespace zipmoe::linear {

Backend backend_of(int index, int order) {
  Backend backend;
  const char* name = zipmoe_backend_name(index);
  if (name == nullptr || order < 0 || order >= kOrders) return backend;
#if defined(__x86_64__)
  const bool avx512 = strcmp(name, "avx512") == 0, avx2 = strcmp(name, "avx2") == 0;
  if (avx512) backend.cascade_rows = cascade_rows_avx512;
  if (avx2) backend.cascade_rows = cascade_rows_avx2;
  if (order == kPairs && avx512 && __builtin_cpu_supports("avx512bf16")) {
    backend.kernel = pairs_avx512();
    backend.blocks = pairs_blocks_avx512();
  }
  if (order == kLanes && avx512) {
    backend.kernel = lanes_avx512();
    backend.blocks = lanes_blocks_avx512();
  }
  if (order == kLanes && avx2 && __builtin_cpu_supports("fma")) {
    backend.kernel = lanes_avx2();
    backend.blocks = lanes_blocks_avx2();
  }
#elif defined(__aarch64__)
  const bool neon = strcmp(name, "neon") == 0;
  if (neon) backend.cascade_rows = cascade_rows_neon;
  if (order == kLanes && neon) backend.kernel = lanes_neon();
#endif
  backend.native = backend.kernel != nullptr;
  if (!backend.native) backend.kernel = kernel_scalar(static_cast<Order>(order));
  return backend;
}

}  // namespace zipmoe::linear
