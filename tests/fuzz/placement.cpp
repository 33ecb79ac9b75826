#include "placement.h"

#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace zipmoe::fuzz {
namespace {

constexpr size_t kPage = 65536;  // a multiple of every page size in use
constexpr size_t kPages = 16;    // room for every buffer that a target asks for
constexpr size_t kFront = 128;
constexpr size_t kGranule = 8;   // AddressSanitizer can forbid whole ones only
constexpr uint8_t kCanary = 0xa5;

// Mapping costs more than decoding: guarded memory is handed from one execution to the next.
constexpr size_t kPooled = 16;
uint8_t* pool[kPooled];
size_t pooled = 0;

uint8_t* take_guarded() {
  if (pooled > 0) return pool[--pooled];
  void* pages = mmap(nullptr, (kPages + 1) * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) abort();
  if (mprotect(static_cast<uint8_t*>(pages) + kPages * kPage, kPage, PROT_NONE) != 0) abort();
  return static_cast<uint8_t*>(pages);
}

void give_guarded(uint8_t* pages) {
  if (pooled < kPooled) {
    pool[pooled++] = pages;
  } else {
    munmap(pages, (kPages + 1) * kPage);
  }
}

}  // namespace

Buffer::Buffer(Place place, size_t nbytes, size_t alignment) : place_(place), nbytes_(nbytes) {
  if (place == Place::kHeap) {
    alignment %= 64;
    if (posix_memalign(reinterpret_cast<void**>(&memory_), 64, kFront + alignment + nbytes) != 0) abort();
    start_ = memory_ + kFront + alignment;
  } else {
    if (nbytes + kFront > kPages * kPage) abort();
    memory_ = take_guarded();
    start_ = memory_ + kPages * kPage - nbytes;
  }
  memset(start_ - kFront, kCanary, kFront);
  if (place == Place::kHeap) ASAN_POISON_MEMORY_REGION(memory_, (kFront + alignment) / kGranule * kGranule);
}

Buffer::~Buffer() {
  if (place_ == Place::kHeap) {
    ASAN_UNPOISON_MEMORY_REGION(memory_, start_ - memory_);
    free(memory_);
  } else {
    give_guarded(memory_);
  }
}

bool Buffer::untouched_in_front() const {
  if (place_ == Place::kHeap) ASAN_UNPOISON_MEMORY_REGION(memory_, start_ - memory_);
  for (const uint8_t* byte = start_ - kFront; byte < start_; ++byte) {
    if (*byte != kCanary) return false;
  }
  return true;
}

}  // namespace zipmoe::fuzz
