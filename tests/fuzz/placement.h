// Memory in which a decoder that leaves its buffers is caught.
#ifndef ZIPMOE_TESTS_FUZZ_PLACEMENT_H
#define ZIPMOE_TESTS_FUZZ_PLACEMENT_H

#include <stddef.h>
#include <stdint.h>

namespace zipmoe::fuzz {

// Two ways to lay out a buffer, with canaries in front of it. On the heap AddressSanitizer knows every byte around it, but
// it does not see through all vector instructions: at a page's end an inaccessible page follows at once.
enum class Place : uint8_t { kHeap, kPageEnd };

class Buffer {
 public:
  // `alignment` is that of the start, modulo 64, on the heap; at a page's end the size decides it.
  Buffer(Place place, size_t nbytes, size_t alignment);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  uint8_t* start() const { return start_; }
  size_t nbytes() const { return nbytes_; }

  // Whether the canaries are alive. Ends AddressSanitizer's watch over them.
  bool untouched_in_front() const;

 private:
  Place place_;
  size_t nbytes_;
  uint8_t* memory_;
  uint8_t* start_;
};

}  // namespace zipmoe::fuzz

#endif
