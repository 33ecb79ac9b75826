// A part of a matrix as a store has it.
#ifndef ZIPMOE_KERNELS_LINEAR_PART_H
#define ZIPMOE_KERNELS_LINEAR_PART_H

#include <stddef.h>
#include <stdint.h>

// Some rows: an e-chunk of the codec "cascade" (any bytes are safe) and an sm byte for each weight.
struct zipmoe_part {
  const uint8_t* chunk;
  size_t chunk_bytes;
  const uint8_t* sm;
  size_t rows;
};

#endif
