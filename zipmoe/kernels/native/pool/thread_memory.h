// Memory that a thread keeps between calls.
#ifndef ZIPMOE_KERNELS_THREAD_MEMORY_H
#define ZIPMOE_KERNELS_THREAD_MEMORY_H

#include <stddef.h>
#include <stdlib.h>

namespace zipmoe {

class ThreadMemory {
 public:
  ~ThreadMemory() { free(memory_); }

  // Returns at least `bytes` bytes, aligned to 64; null without memory. Earlier content is lost.
  void* get(size_t bytes) {
    if (bytes > bytes_) {
      free(memory_);
      memory_ = aligned_alloc(64, (bytes + 63) / 64 * 64);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace zipmoe

#endif
