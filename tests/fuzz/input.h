// What an input of the fuzz target is made of.
#ifndef ZIPMOE_TESTS_FUZZ_INPUT_H
#define ZIPMOE_TESTS_FUZZ_INPUT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "placement.h"
#include "planes/planes.h"

namespace zipmoe::fuzz {

constexpr size_t kMostWeights = 1 << 17;
constexpr size_t kFewWeights = 1 << 12;  // small buffers make many executions a second

// The bytes of an input, consumed from the front; zero behind their end.
struct Input {
  const uint8_t* bytes;
  size_t nbytes;

  size_t number(size_t width) {
    size_t value = 0;
    for (size_t i = 0; i < width && nbytes > 0; ++i, ++bytes, --nbytes) value |= size_t{*bytes} << 8 * i;
    return value;
  }
};

// u8: bit 0 the place of the buffers, bits 1-6 their alignment, bit 7 whether there may be more than kFewWeights.
struct Layout {
  Place place;
  size_t alignment;
  size_t most_weights;

  explicit Layout(size_t flags)
      : place(flags & 1 ? Place::kPageEnd : Place::kHeap),
        alignment(flags >> 1 & 63),
        most_weights(flags & 0x80 ? kMostWeights : kFewWeights) {}
};

inline void copy(const uint8_t* from, const Buffer& to) {
  if (to.nbytes() > 0) memcpy(to.start(), from, to.nbytes());
}

inline bool same(const Buffer& a, const Buffer& b) {
  return a.nbytes() == b.nbytes() && (a.nbytes() == 0 || memcmp(a.start(), b.start(), a.nbytes()) == 0);
}

// Different bytes for every backend: where outputs agree, none of them has been left as it was.
inline void blank(const Buffer& buffer, int backend) {
  if (buffer.nbytes() > 0) memset(buffer.start(), 0x11 * (backend + 1), buffer.nbytes());
}

// Ends the process with what was claimed, unless it held.
inline void claim(bool held, const char* subject, int backend, const char* what) {
  if (held) return;
  fprintf(stderr, "%s on %s: %s\n", subject, zipmoe_backend_name(backend), what);
  abort();
}

}  // namespace zipmoe::fuzz

#endif
