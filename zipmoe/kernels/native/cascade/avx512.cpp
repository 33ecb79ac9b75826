#include "cascade/cascade.h"
#include "cascade/decode.h"
#include "cascade/isa/avx512.h"

namespace zipmoe::cascade {

bool decompress_avx512(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n) {
  return decompress<isa::Avx512>(chunk, chunk_bytes, e, n);
}

bool recover_avx512(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n) {
  return recover<isa::Avx512>(chunk, chunk_bytes, sm, bf16, n);
}

}  // namespace zipmoe::cascade
