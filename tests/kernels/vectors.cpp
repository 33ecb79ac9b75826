// Exercises one kernel backend where Python does not run: under an emulator of another CPU.
//
//   vectors BACKEND > bytes
//
// Writes what the backend makes of all 65 536 patterns (merged weights, then SM plane, then exponent plane), for the
// test to compare with its reference. Before that it checks every length 0..300 at every alignment 0..63 of each buffer
// against the scalar backend, with a canary around each output and an inaccessible page behind each input.
// Exits with 1 and a line on stderr at the first difference; touching the page ends in SIGSEGV.
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "planes.h"

namespace {

constexpr size_t kPatterns = 65536;
constexpr size_t kLongest = 300;
constexpr size_t kAlignments = 64;
constexpr size_t kPage = 65536;  // a multiple of every page size in use
constexpr uint8_t kCanary = 0xa5;

alignas(64) uint8_t sm_source[kLongest], e_source[kLongest], bf16_source[2 * kLongest];

// Memory with room for `used` bytes that ends at an inaccessible page.
uint8_t* guarded(size_t used) {
  void* pages = mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(static_cast<uint8_t*>(pages) + kPage, kPage, PROT_NONE) != 0) return nullptr;
  return static_cast<uint8_t*>(pages) + kPage - used;
}

// An output buffer at a chosen alignment, with canaries on both sides.
struct Canvas {
  alignas(64) uint8_t bytes[64 + kAlignments + 2 * kLongest + 64];
  size_t begin;

  uint8_t* at(size_t alignment) {
    memset(bytes, kCanary, sizeof bytes);
    begin = 64 + alignment;
    return bytes + begin;
  }
  bool holds(const uint8_t* expected, size_t count) const {
    if (memcmp(bytes + begin, expected, count) != 0) return false;
    for (size_t i = 0; i < sizeof bytes; ++i) {
      if ((i < begin || i >= begin + count) && bytes[i] != kCanary) return false;
    }
    return true;
  }
};

Canvas first, second;

bool check(int backend, size_t n, const uint8_t* sm, const uint8_t* e, const uint8_t* bf16, size_t a, size_t b) {
  zipmoe_merge_planes(backend, sm, e, first.at(a), n);
  if (!first.holds(bf16_source, 2 * n)) return false;
  uint8_t* sm_out = first.at(a);
  zipmoe_split_planes(backend, bf16, sm_out, second.at(b), n);
  return first.holds(sm_source, n) && second.holds(e_source, n);
}

bool check_lengths_and_alignments(int backend, int scalar) {
  for (size_t i = 0; i < kLongest; ++i) {
    sm_source[i] = static_cast<uint8_t>(i * 151 + 7);
    e_source[i] = static_cast<uint8_t>(i * 97 + 30);
  }
  zipmoe_merge_planes(scalar, sm_source, e_source, bf16_source, kLongest);
  alignas(64) static uint8_t sm[kAlignments + kLongest], e[kAlignments + kLongest], bf16[kAlignments + 2 * kLongest];
  for (size_t n = 0; n <= kLongest; ++n) {
    for (size_t a = 0; a < kAlignments; ++a) {
      memcpy(sm + a, sm_source, n);
      memcpy(e + a, e_source, n);
      memcpy(bf16 + a, bf16_source, 2 * n);
      if (!check(backend, n, sm + a, e + a, bf16 + a, 0, 0) || !check(backend, n, sm_source, e_source, bf16_source, a, 0) ||
          !check(backend, n, sm_source, e_source, bf16_source, 0, a)) {
        fprintf(stderr, "length %zu, alignment %zu differs\n", n, a);
        return false;
      }
    }
    uint8_t* sm_end = guarded(n);
    uint8_t* e_end = guarded(n);
    uint8_t* bf16_end = guarded(2 * n);
    memcpy(sm_end, sm_source, n);
    memcpy(e_end, e_source, n);
    memcpy(bf16_end, bf16_source, 2 * n);
    if (!check(backend, n, sm_end, e_end, bf16_end, 0, 0)) return false;
    munmap(sm_end + n - kPage, 2 * kPage);
    munmap(e_end + n - kPage, 2 * kPage);
    munmap(bf16_end + 2 * n - kPage, 2 * kPage);
  }
  return true;
}

void write_all_patterns(int backend) {
  static uint8_t sm[kPatterns], e[kPatterns], bf16[2 * kPatterns];
  for (size_t i = 0; i < kPatterns; ++i) {
    sm[i] = static_cast<uint8_t>(i >> 8);
    e[i] = static_cast<uint8_t>(i);
  }
  zipmoe_merge_planes(backend, sm, e, bf16, kPatterns);
  fwrite(bf16, 1, sizeof bf16, stdout);
  for (size_t i = 0; i < kPatterns; ++i) {
    bf16[2 * i] = static_cast<uint8_t>(i);
    bf16[2 * i + 1] = static_cast<uint8_t>(i >> 8);
  }
  zipmoe_split_planes(backend, bf16, sm, e, kPatterns);
  fwrite(sm, 1, sizeof sm, stdout);
  fwrite(e, 1, sizeof e, stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int scalar = zipmoe_backend_count() - 1;
  for (int backend = 0; argc == 2 && backend <= scalar; ++backend) {
    if (strcmp(zipmoe_backend_name(backend), argv[1]) != 0) continue;
    if (!check_lengths_and_alignments(backend, scalar)) return 1;
    write_all_patterns(backend);
    return 0;
  }
  fprintf(stderr, "usage: %s BACKEND, one that this CPU has\n", argv[0]);
  return 2;
}
