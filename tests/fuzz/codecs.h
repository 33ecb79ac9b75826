#ifndef ZIPMOE_TESTS_FUZZ_CODECS_H
#define ZIPMOE_TESTS_FUZZ_CODECS_H

#include "input.h"

namespace zipmoe::fuzz {

struct Codec {
  const char* name;
  int (*decompress)(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
  int (*recover)(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);
  size_t (*bound)(size_t n, size_t cols, size_t block_rows);
  size_t (*compress)(const uint8_t* e, size_t n, size_t cols, size_t block_rows, uint8_t* chunk);
};

extern const Codec kCodecs[];
extern const size_t kCodecCount;

// Input: u24 count of weights, modulo the most there may be; then the chunk. True where it is accepted.
bool decode(const Codec& codec, Layout layout, Input input);

// Input: u16 columns, u8 rows of a block; then the exponents. True where they can be encoded.
bool encode(const Codec& codec, Layout layout, Input input);

}  // namespace zipmoe::fuzz

#endif
