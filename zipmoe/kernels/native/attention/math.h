// Shared code of the attention kernels: conversions, and a walk over the tokens of a context. All code is private to
// the including file, because files are compiled for different instruction sets.
#ifndef ZIPMOE_KERNELS_ATTENTION_MATH_H
#define ZIPMOE_KERNELS_ATTENTION_MATH_H

#include <math.h>
#include <string.h>

#include "attention/attention.h"

namespace zipmoe::attention {
namespace {

inline float widen(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint16_t round_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// Walks over the values of a context, token by token, from run to run.
class Tokens {
 public:
  Tokens(const Values& task, size_t first_number)
      : values_(task.values + first_number), numbers_(task.numbers), run_(task.runs) {
    enter();
  }

  // Returns the next token's values. The caller must not call `next` more often than the context has tokens.
  inline const uint16_t* next() {
    if (left_ == 0) {
      ++run_;
      enter();
    }
    const uint16_t* row = row_;
    row_ += numbers_;
    --left_;
    return row;
  }

 private:
  const uint16_t* values_;
  size_t numbers_;
  const Run* run_;
  const uint16_t* row_;
  int64_t left_;

  inline void enter() {
    row_ = values_ + static_cast<size_t>(run_->slot) * numbers_;
    left_ = run_->tokens;
  }
};

}  // namespace
}  // namespace zipmoe::attention

#endif
