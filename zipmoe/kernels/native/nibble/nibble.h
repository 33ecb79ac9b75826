// Products from a matrix in nibble form, conversion to and from that form, and their C interface.
//
// All functions accept any bytes as a matrix in nibble form, read nothing outside its stated size and write nothing outside
// their outputs. Every backend has them.
#ifndef ZIPMOE_KERNELS_NIBBLE_H
#define ZIPMOE_KERNELS_NIBBLE_H

#include <stddef.h>
#include <stdint.h>

#include "linear/linear.h"
#include "linear/part.h"
#include "nibble/outline.h"
#include "planes/planes.h"

namespace zipmoe::nibble {

enum Result { kDone = 0, kUnknown = -1, kCorrupt = -2, kNoMemory = -3, kNoRoom = -4 };

// Two rows of bf16, for a tile.
struct Pair {
  const uint16_t* row[kOutputs];
};

// The output of a place of a group, and its input, counted from the first input of the group.
constexpr size_t output_of(size_t place) { return place / kOutputPlaces; }
constexpr size_t input_of(size_t place, size_t pass) {
  return place / 8 % kGroupSteps * kLanes + pass * kPassLanes + place % kOutputPlaces / 16 * 8 + place % 8;
}

// Writes the exception at a place of a pass.
inline void put_exception(const Pair& rows, size_t pass, size_t place, uint8_t* listed) {
  const uint16_t* row = rows.row[output_of(place % kGroup)];
  const uint16_t weight = row[place / kGroup * kGroupInputs + input_of(place % kGroup, pass)];
  const uint32_t entry = static_cast<uint32_t>(place << 8 | weight >> 8);
  memcpy(listed, &entry, sizeof entry);
}

// Nibble form on one instruction set.
struct Kernel {
  // Codes the groups of a pass to `out`. Lists weights whose high byte is not in the tables: their exceptions go to
  // `listed`, which has room for `most`. Returns how many there are, also if they are more than `most`.
  size_t (*code)(const Pair& rows, size_t pass, size_t groups, const uint8_t* tables, uint8_t* out, uint8_t* listed,
                 size_t most);
  // Recovers the coded inputs of a pass, without exceptions.
  void (*recover)(const Tile& tile, size_t pass, uint16_t* const* rows);

  // Rows of x in the order in which a product reads them.
  size_t (*packed_bytes)(size_t m, size_t k);
  void (*pack)(const linear::Task& task, void* packed);
  // Computes the outputs of some tiles for all rows of x. Returns false if a tile is corrupt; the outputs are then
  // undefined. `scratch` is aligned to 64.
  size_t (*scratch_bytes)(size_t m, size_t k);
  bool (*multiply)(const linear::Task& task, const void* packed, const Matrix& matrix, size_t first, size_t count,
                   void* scratch);
};

const Kernel* kernel_scalar();
#if defined(__x86_64__)
const Kernel* kernel_avx2();  // needs FMA
#elif defined(__aarch64__)
const Kernel* kernel_neon();
#endif

// Recovers all weights of a tile.
void recover_tile(const Kernel& kernel, const Tile& tile, size_t k, uint16_t* const* rows);

// Where an encoder writes, and how much it has written.
struct Room {
  uint8_t* bytes;
  size_t nbytes;
  size_t* used;
};

// Write a matrix to the room, if it has room enough; shape.bound() bytes always are.
Result encode_bf16(const Kernel& kernel, const uint16_t* weight, const Shape& shape, const Room& room);
Result encode_parts(int backend, const Kernel& kernel, const zipmoe_part* parts, size_t count, const Shape& shape,
                    const Room& room);

}  // namespace zipmoe::nibble

// The functions of nibble form, as those of tile form (tile/tile.h). The linear computes in the order "lanes"; `k_block` and
// `parts` do not matter.
ZIPMOE_EXPORT int zipmoe_nibble_is_supported(int backend);
ZIPMOE_EXPORT size_t zipmoe_nibble_bound(size_t n, size_t k);
ZIPMOE_EXPORT int zipmoe_nibble_from_cascade(int backend, const zipmoe_part* parts, size_t count, size_t n, size_t k,
                                             uint8_t* out, size_t room, size_t* used);
ZIPMOE_EXPORT int zipmoe_nibble_from_bf16(int backend, const uint16_t* weight, size_t n, size_t k, uint8_t* out,
                                          size_t room, size_t* used);
ZIPMOE_EXPORT int zipmoe_nibble_to_bf16(int backend, const uint8_t* form, size_t form_bytes, size_t n, size_t k,
                                        uint16_t* weight);
ZIPMOE_EXPORT int zipmoe_nibble_linear(int backend, const uint16_t* x, const uint8_t* form, size_t form_bytes,
                                       const uint16_t* bias, uint16_t* out, size_t m, size_t n, size_t k,
                                       size_t k_block, size_t parts, size_t threads);

#endif
