#include "planes/planes.h"

namespace zipmoe {

void merge_planes_scalar(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    bf16[2 * i] = static_cast<uint8_t>((e[i] << 7) | (sm[i] & 0x7f));
    bf16[2 * i + 1] = static_cast<uint8_t>((sm[i] & 0x80) | (e[i] >> 1));
  }
}

void split_planes_scalar(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const uint8_t low = bf16[2 * i];
    const uint8_t high = bf16[2 * i + 1];
    sm[i] = static_cast<uint8_t>((high & 0x80) | (low & 0x7f));
    e[i] = static_cast<uint8_t>((high << 1) | (low >> 7));
  }
}

}  // namespace zipmoe
