// Products from a matrix in tile form, conversion to and from that form, and their C interface.
//
// All functions accept any bytes as a tile matrix, read nothing outside its stated size and write nothing outside their
// outputs. They need AVX-512 with VBMI2 and BF16.
#ifndef ZIPMOE_KERNELS_TILE_H
#define ZIPMOE_KERNELS_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "linear/linear.h"
#include "linear/part.h"
#include "planes/planes.h"
#include "tile/outline.h"

namespace zipmoe::tile {

enum Result { kDone = 0, kUnknown = -1, kCorrupt = -2, kNoMemory = -3, kNoRoom = -4 };

// Where an encoder writes, and how much it has written.
struct Room {
  uint8_t* bytes;
  size_t nbytes;
  size_t* used;
};

#if defined(__x86_64__)
// Write a matrix to the room, if it has room enough; shape.bound() bytes always are.
Result encode_parts_avx512(const zipmoe_part* parts, size_t count, const Shape& shape, const Room& room);
Result encode_bf16_avx512(const uint16_t* weight, const Shape& shape, const Room& room);

// Recovers the rows of a tile, of which the last one may have fewer than 32. Returns false if the tile is corrupt; the
// rows are then undefined. `scratch` has scratch_bytes_avx512(0) bytes, aligned to 64.
bool recover_avx512(const Matrix& matrix, size_t index, void* scratch, uint16_t* weight);

// Rows of x in the order in which a product reads them.
size_t packed_bytes_avx512(size_t m, size_t k);
void pack_avx512(const linear::Task& task, void* packed);

// Computes the outputs of some tiles for all rows of x. Returns false if a tile is corrupt; the outputs are then
// undefined. `scratch` has scratch_bytes_avx512(task.m) bytes, aligned to 64.
size_t scratch_bytes_avx512(size_t m);
bool multiply_avx512(const linear::Task& task, const void* packed, const Matrix& matrix, size_t first, size_t count,
                     void* scratch);
#endif

}  // namespace zipmoe::tile

// Whether the functions below run on a backend (1) or return -1 (0).
ZIPMOE_EXPORT int zipmoe_tile_is_supported(int backend);

// Size of the largest possible matrix of n rows of k in tile form; 0 if a size is out of range.
ZIPMOE_EXPORT size_t zipmoe_tile_bound(size_t n, size_t k);

// Convert a matrix of n rows of k to tile form in `out`, which has room for `room` bytes; the size is written to `used`,
// and bytes behind it stay as they are. Return 0 when done; -1 (nothing written) for a backend without these functions
// or sizes out of range; otherwise the output is undefined: -2 when a chunk is corrupt or the parts have other rows than
// the matrix; -3 without memory; -4 when the matrix needs more than `room` bytes. zipmoe_tile_bound bytes are enough.
ZIPMOE_EXPORT int zipmoe_tile_from_cascade(int backend, const zipmoe_part* parts, size_t count, size_t n, size_t k,
                                           uint8_t* out, size_t room, size_t* used);
ZIPMOE_EXPORT int zipmoe_tile_from_bf16(int backend, const uint16_t* weight, size_t n, size_t k, uint8_t* out,
                                        size_t room, size_t* used);

// Recovers n rows of k from a matrix in tile form, which begins at `tiles` and ends within `tiles_bytes`. Returns as
// above, and -2 when the matrix is corrupt or has other sizes.
ZIPMOE_EXPORT int zipmoe_tile_to_bf16(int backend, const uint8_t* tiles, size_t tiles_bytes, size_t n, size_t k,
                                      uint16_t* weight);

// Computes a linear in the order "pairs". Arguments are those of zipmoe_linear, results those of zipmoe_tile_to_bf16.
ZIPMOE_EXPORT int zipmoe_tile_linear(int backend, const uint16_t* x, const uint8_t* tiles, size_t tiles_bytes,
                                     const uint16_t* bias, uint16_t* out, size_t m, size_t n, size_t k, size_t k_block,
                                     size_t parts, size_t threads);

#endif
