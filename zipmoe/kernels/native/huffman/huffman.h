// The Huffman kernels in portable C++, and the C interface that Python loads. FORMAT.md has the chunk's bytes.
//
// The recovering functions accept any bytes as a chunk. They read nothing outside the chunk, write nothing outside the
// n exponents or weights, and allocate nothing but 128 KiB of stack. Buffers need no alignment and must not overlap.
// All functions are safe from any thread.
#ifndef ZIPMOE_KERNELS_HUFFMAN_H
#define ZIPMOE_KERNELS_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

// Size of the largest possible chunk of n exponents in bytes; 0 when n is 4 Gi or more.
ZIPMOE_EXPORT size_t zipmoe_huffman_bound(size_t n);

// Writes a chunk of at most zipmoe_huffman_bound bytes and returns its size; returns 0 if the bound is 0. `cols` is the
// number of weights per row, or 0 without rows. The bytes are the same on every machine.
ZIPMOE_EXPORT size_t zipmoe_huffman_compress(const uint8_t* e, size_t n, size_t cols, uint8_t* chunk);

// Recover exponents or weights. Return 0 when done; -1 (nothing written) for an unknown backend; -2 (undefined output)
// when the chunk is corrupt or of another size.
ZIPMOE_EXPORT int zipmoe_huffman_decompress(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e,
                                            size_t n);
ZIPMOE_EXPORT int zipmoe_huffman_recover(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm,
                                         uint8_t* bf16, size_t n);

#endif
