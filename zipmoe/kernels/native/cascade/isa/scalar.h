// 64 weights of a cascade in portable C++.
#ifndef ZIPMOE_KERNELS_CASCADE_ISA_SCALAR_H
#define ZIPMOE_KERNELS_CASCADE_ISA_SCALAR_H

#include <stdint.h>
#include <string.h>

#include "cascade/group.h"
#include "planes/planes.h"

namespace zipmoe::cascade::isa {

struct Scalar {
  static constexpr MergePlanes kMerge = merge_planes_scalar;
  static constexpr bool kStreams = false;

  struct Ranks {
    Bytes codes;
    uint8_t first;
    uint64_t escaped;  // bit i: weight i
    const uint8_t* escapes;
  };

  struct Table {
    uint8_t exponent[16];

    // The mask is for hostile blocks: they can have more escapes than ranks, and the scratch memory behind the ranks
    // can hold any byte.
    uint8_t exponent_of(uint8_t rank) const { return exponent[rank & 15]; }
  };

  static inline Ranks ranks(const uint8_t* codes, uint8_t first, const uint8_t*& escapes) {
    Ranks ranks;
    memcpy(&ranks.codes, codes, sizeof ranks.codes);
    ranks.first = first;
    ranks.escaped = escapes_of(codes);
    ranks.escapes = escapes;
    escapes += bit_count(ranks.escaped);
    return ranks;
  }

  // Replaces the builtin, which is a function call per group if the baseline lacks the instruction.
  static inline int bit_count(uint64_t bits) {
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    return static_cast<int>(((bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
  }

  static inline void store(const Ranks& ranks, uint8_t* out) {
    for (int pair = 0; pair < 4; ++pair) {
      const Bytes rank = (ranks.codes >> 2 * pair & 3) + ranks.first;
      memcpy(out + 16 * pair, &rank, sizeof rank);
    }
    each_escape(ranks, [out](int i, uint8_t rank) { out[i] = rank; });
  }

  static inline Table table(const uint8_t* bytes) {
    Table table;
    memcpy(table.exponent, bytes, sizeof table.exponent);
    return table;
  }

  // Recovers the exponents of 16 weights; 0 for escapes.
  static inline Bytes unescaped(const Ranks& ranks, int pair, const Table& table) {
    const Bytes code = ranks.codes >> 2 * pair & 3;
    return (where(code, 0) & table.exponent[0]) | (where(code, 1) & table.exponent[1]) |
           (where(code, 2) & table.exponent[2]);
  }

  static inline void exponents(const Ranks& ranks, const Table& table, uint8_t* e) {
    for (int pair = 0; pair < 4; ++pair) {
      const Bytes exponent = unescaped(ranks, pair, table);
      memcpy(e + 16 * pair, &exponent, sizeof exponent);
    }
    each_escape(ranks, [&table, e](int i, uint8_t rank) { e[i] = table.exponent_of(rank); });
  }

  template <bool kStream = false>
  static inline void weights(const Ranks& ranks, const Table& table, const uint8_t* sm, uint8_t* bf16) {
    for (int pair = 0; pair < 4; ++pair) {
      Bytes sm_bytes;
      memcpy(&sm_bytes, sm + 16 * pair, sizeof sm_bytes);
      const Words s = __builtin_convertvector(sm_bytes, Words);
      const Words e = __builtin_convertvector(unescaped(ranks, pair, table), Words);
      const Words weight = e << 7 | (s & 0x80) << 8 | (s & 0x7f);
      memcpy(bf16 + 32 * pair, &weight, sizeof weight);
    }
    each_escape(ranks, [&table, bf16](int i, uint8_t rank) {
      uint16_t weight;
      memcpy(&weight, bf16 + 2 * i, sizeof weight);
      weight = static_cast<uint16_t>(weight | table.exponent_of(rank) << 7);
      memcpy(bf16 + 2 * i, &weight, sizeof weight);
    });
  }

  template <class Use>
  static inline void each_escape(const Ranks& ranks, Use use) {
    const uint8_t* next = ranks.escapes;
    each_bit(ranks.escaped, [&next, use](int i) { use(i, *next++); });
  }
};

}  // namespace zipmoe::cascade::isa

#endif
