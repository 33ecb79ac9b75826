// The Huffman kernels in portable C++, and the C interface that Python loads. FORMAT.md has the chunk's bytes.
//
// Decoders accept any bytes as a chunk: they read nothing outside the chunk, write nothing outside the n exponents or
// weights they are given, and allocate nothing but 128 KiB of stack. No buffer needs any alignment; buffers must not
// overlap. All are safe from any thread.
#ifndef ZIPMOE_KERNELS_HUFFMAN_H
#define ZIPMOE_KERNELS_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

// Bytes of the largest chunk that n exponents can become; 0 when n is 4 Gi or more.
ZIPMOE_EXPORT size_t zipmoe_huffman_bound(size_t n);

// Writes a chunk of at most zipmoe_huffman_bound bytes and returns its size; 0 where the bound is 0. `cols` are the
// weights a row, 0 where there are no rows. The
// same bytes on every machine.
ZIPMOE_EXPORT size_t zipmoe_huffman_compress(const uint8_t* e, size_t n, size_t cols, uint8_t* chunk);

// 0 when done; -1 (nothing written) when there is no such backend; -2 when the chunk is corrupt or of another size, and
// the output is undefined.
ZIPMOE_EXPORT int zipmoe_huffman_decompress(int backend, const uint8_t* chunk, size_t chunk_bytes, uint8_t* e,
                                            size_t n);
ZIPMOE_EXPORT int zipmoe_huffman_recover(int backend, const uint8_t* chunk, size_t chunk_bytes, const uint8_t* sm,
                                         uint8_t* bf16, size_t n);

#endif
