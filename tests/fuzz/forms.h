#ifndef ZIPMOE_TESTS_FUZZ_FORMS_H
#define ZIPMOE_TESTS_FUZZ_FORMS_H

#include <stddef.h>
#include <stdint.h>

#include "input.h"
#include "linear/part.h"

namespace zipmoe::fuzz {

// An in-memory form of a matrix, by its functions of the library.
struct Form {
  const char* name;
  int (*is_supported)(int backend);
  size_t (*bound)(size_t n, size_t k);
  int (*from_cascade)(int backend, const zipmoe_part*, size_t count, size_t n, size_t k, uint8_t*, size_t room, size_t* used);
  int (*from_bf16)(int backend, const uint16_t*, size_t n, size_t k, uint8_t* out, size_t room, size_t* used);
  int (*to_bf16)(int backend, const uint8_t* form, size_t nbytes, size_t n, size_t k, uint16_t* weight);
  int (*linear)(int backend, const uint16_t* x, const uint8_t* form, size_t nbytes, const uint16_t* bias, uint16_t* out,
                size_t m, size_t n, size_t k, size_t k_block, size_t parts, size_t threads);
  int order;
};

constexpr size_t kFormCount = 2;
extern const Form kForms[kFormCount];

// Input: u8 rows of inputs, with bit 7 for two threads, u8 rows of weights, u16 inputs, each modulo the most there may be;
// then a matrix in the form. True where it is accepted.
bool compute_form(const Form& form, Layout layout, Input input);

// Input: u8 rows of weights, u16 inputs, as above; then bf16 weights, as many as there are. True where a backend has the form.
bool make_form(const Form& form, Layout layout, Input input);

}  // namespace zipmoe::fuzz

#endif
