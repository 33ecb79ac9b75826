// Groups of 64 codes in portable C++. Code i is in byte i % 16, bits 2 * (i / 16).
#ifndef ZIPMOE_KERNELS_CASCADE_GROUP_H
#define ZIPMOE_KERNELS_CASCADE_GROUP_H

#include <stdint.h>
#include <string.h>

namespace zipmoe::cascade {

// GCC and clang compile these types to the vectors of the machine's baseline, or to loops without vectors.
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Words __attribute__((vector_size(32)));

// 255 where a byte is `value`, 0 elsewhere. The comparison's own type is signed with clang.
static inline Bytes where(Bytes bytes, uint8_t value) { return reinterpret_cast<Bytes>(bytes == value); }

// Returns a mask: bit i is set if code i is an escape.
static inline uint64_t escapes_of(const uint8_t* group) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  uint64_t escapes = 0;
  for (int eight = 0; eight < 8; ++eight) {
    uint64_t code;  // eight codes in the bytes of a word
    memcpy(&code, group + 8 * (eight % 2), sizeof code);
    code = code >> 2 * (eight / 2) & 3 * kOnes;
    // The multiplication gathers the lowest bits of the eight bytes in the highest byte.
    escapes |= ((code & code >> 1 & kOnes) * 0x0102040810204080 >> 56) << 8 * eight;
  }
  return escapes;
}

// Calls use(i) for every set bit i. Escapes are rare, so this is faster than a look at every code.
template <class Use>
static inline void each_bit(uint64_t bits, Use use) {
  for (; bits != 0; bits &= bits - 1) use(__builtin_ctzll(bits));
}

}  // namespace zipmoe::cascade

#endif
