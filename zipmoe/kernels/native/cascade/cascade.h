// The cascade kernels of every backend, and the C interface that Python loads.
//
// The recovering functions accept any bytes as a chunk. They read nothing outside the chunk, write nothing outside the
// n exponents or weights, and allocate nothing but 200 KiB of stack. Buffers need no alignment and must not overlap.
// All functions are safe from any thread.
#ifndef ZIPMOE_KERNELS_CASCADE_H
#define ZIPMOE_KERNELS_CASCADE_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::cascade {

// Return false if the chunk is corrupt or does not hold n exponents; the output is then undefined.
using Decompress = bool (*)(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
using Recover = bool (*)(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);

bool decompress_scalar(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
bool recover_scalar(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);

#if defined(__x86_64__)
bool decompress_avx2(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
bool recover_avx2(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);
bool decompress_avx512(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
bool recover_avx512(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);
#elif defined(__aarch64__)
bool decompress_neon(const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
bool recover_neon(const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm, uint8_t* bf16, size_t n);
#endif

}  // namespace zipmoe::cascade

// Size of the largest possible chunk of n exponents in bytes; 0 outside the limits (see FORMAT.md).
ZIPMOE_EXPORT size_t zipmoe_cascade_bound(size_t n, size_t cols, size_t block_rows);

// Writes a chunk of at most zipmoe_cascade_bound bytes and returns its size; returns 0 if the bound is 0. The bytes are
// the same on every machine.
ZIPMOE_EXPORT size_t zipmoe_cascade_compress(const uint8_t* e, size_t n, size_t cols, size_t block_rows, uint8_t* chunk);

// Recover exponents or weights. Return 0 when done; -1 (nothing written) for an unknown backend; -2 (undefined output)
// when the chunk is corrupt or of another size.
ZIPMOE_EXPORT int zipmoe_cascade_decompress(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e, size_t n);
ZIPMOE_EXPORT int zipmoe_cascade_recover(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm,
                                         uint8_t* bf16, size_t n);

#endif
