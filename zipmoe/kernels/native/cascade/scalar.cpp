#include "cascade/cascade.h"
#include "cascade/decode.h"
#include "cascade/isa/scalar.h"

namespace zipmoe::cascade {

bool decompress_scalar(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n) {
  return decompress<isa::Scalar>(chunk, chunk_bytes, e, n);
}

bool recover_scalar(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n) {
  return recover<isa::Scalar>(chunk, chunk_bytes, sm, bf16, n);
}

}  // namespace zipmoe::cascade
