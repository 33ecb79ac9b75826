// 64 weights of a cascade in portable C++.
#ifndef ZIPMOE_KERNELS_CASCADE_ISA_SCALAR_H
#define ZIPMOE_KERNELS_CASCADE_ISA_SCALAR_H

#include <stdint.h>
#include <string.h>

#include "planes.h"

namespace zipmoe::cascade::isa {

struct Scalar {
  static constexpr MergePlanes kMerge = merge_planes_scalar;

  struct Ranks {
    uint8_t of[64];
  };

  struct Table {
    uint8_t exponent[16];
    uint16_t bits[16];  // the exponent where it stands in a weight
  };

  static inline Ranks ranks(const uint8_t* codes, uint8_t first, const uint8_t*& escapes) {
    Ranks ranks;
    const uint8_t* next = escapes;
    for (int pair = 0; pair < 4; ++pair) {
      for (int i = 0; i < 16; ++i) {
        const uint8_t code = codes[i] >> 2 * pair & 3;
        const uint8_t escape = *next;
        ranks.of[16 * pair + i] = code == 3 ? escape : static_cast<uint8_t>(first + code);
        next += code == 3;
      }
    }
    escapes = next;
    return ranks;
  }

  static inline void store(const Ranks& ranks, uint8_t* out) { memcpy(out, ranks.of, sizeof ranks.of); }

  static inline Table table(const uint8_t* bytes) {
    Table table;
    for (int rank = 0; rank < 16; ++rank) {
      table.exponent[rank] = bytes[rank];
      table.bits[rank] = static_cast<uint16_t>(bytes[rank] << 7);
    }
    return table;
  }

  static inline void exponents(const Ranks& ranks, const Table& table, uint8_t* e) {
    for (int i = 0; i < 64; ++i) e[i] = table.exponent[ranks.of[i]];
  }

  static inline void weights(const Ranks& ranks, const Table& table, const uint8_t* sm, uint8_t* bf16) {
    for (int i = 0; i < 64; ++i) {
      const uint16_t weight = static_cast<uint16_t>(table.bits[ranks.of[i]] | (sm[i] & 0x80) << 8 | (sm[i] & 0x7f));
      memcpy(bf16 + 2 * i, &weight, sizeof weight);
    }
  }
};

}  // namespace zipmoe::cascade::isa

#endif
