// The plane kernels of every backend, and the C interface that Python loads.
//
// A bf16 weight is sign (bit 15), exponent (bits 14-7), mantissa (bits 6-0). The SM byte is sign (bit 7) and mantissa
// (bits 6-0). The exponent byte is the exponent. bf16 values are little-endian, as on every supported machine.
//
// No kernel reads or writes outside its n elements, needs alignment, or allocates. Buffers must not overlap. All
// kernels are safe from any thread.
#ifndef ZIPMOE_KERNELS_PLANES_H
#define ZIPMOE_KERNELS_PLANES_H

#include <stddef.h>
#include <stdint.h>

namespace zipmoe {

// sm, e: n bytes each. bf16: 2n bytes.
using MergePlanes = void (*)(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n);
using SplitPlanes = void (*)(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n);

void merge_planes_scalar(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n);
void split_planes_scalar(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n);

#if defined(__x86_64__)
void merge_planes_avx2(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n);
void split_planes_avx2(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n);
#elif defined(__aarch64__)
void merge_planes_neon(const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n);
void split_planes_neon(const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n);
#endif

}  // namespace zipmoe

#define ZIPMOE_EXPORT extern "C" __attribute__((visibility("default")))

// Number of backends that this CPU can run; index 0 is the fastest, the last is "scalar".
ZIPMOE_EXPORT int zipmoe_backend_count(void);

// Name of a backend; NULL outside [0, count).
ZIPMOE_EXPORT const char* zipmoe_backend_name(int backend);

// Run one backend; 0 when done, -1 (nothing written) when the index is outside [0, count).
ZIPMOE_EXPORT int zipmoe_merge_planes(int backend, const uint8_t* sm, const uint8_t* e, uint8_t* bf16, size_t n);
ZIPMOE_EXPORT int zipmoe_split_planes(int backend, const uint8_t* bf16, uint8_t* sm, uint8_t* e, size_t n);

#endif
