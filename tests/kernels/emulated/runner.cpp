// Calls functions of a shared library for another process: under an emulator, it lends Python the kernels of another CPU.
//
//   runner LIBRARY          then requests on stdin and answers on stdout until stdin ends; all integers little-endian
//
//   request   u32 length and name of the function, u32 counts of memories, of pointers and of arguments, then
//             per memory: u64 size, u32 alignment (its start modulo 64), u32 writable, its bytes
//             per pointer that a memory holds: u32 that memory, u64 offset in it, u32 memory and i64 offset it points to
//             per argument: u32 memory (or 0xffffffff), i64 value: an integer, or an offset into that memory
//   answer    i64 result, u32 length and text (the result as a string, or "" where it is none that is readable),
//             u32 length and complaint (or 0), then the bytes of each writable memory
//
// Every memory has canaries in front and behind, and an inaccessible page as close behind as its alignment allows. A
// complaint says which of them, or which read-only memory, a call has changed.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <string>
#include <vector>

namespace {

constexpr size_t kPage = 65536;  // a multiple of every page size in use
constexpr size_t kAlignments = 64;
constexpr size_t kFront = 256;  // bytes of canary in front
constexpr uint8_t kCanary = 0xa5;
constexpr uint32_t kNoMemory = 0xffffffff;
constexpr size_t kMostArguments = 16;

void read_exactly(void* into, size_t count) {
  if (fread(into, 1, count, stdin) != count) exit(0);
}

template <typename T>
T read_number() {
  T number;
  read_exactly(&number, sizeof number);
  return number;
}

template <typename T>
void write_number(T number) {
  fwrite(&number, sizeof number, 1, stdout);
}

void write_text(const std::string& text) {
  write_number(static_cast<uint32_t>(text.size()));
  fwrite(text.data(), 1, text.size(), stdout);
}

class Memory {
 public:
  // Reuses the pages that the call before has left, if they suffice.
  void fill() {
    const size_t size = read_number<uint64_t>();
    const size_t alignment = read_number<uint32_t>() % kAlignments;
    writable_ = read_number<uint32_t>() != 0;
    content_.resize(size);
    read_exactly(content_.data(), size);
    const size_t needed = (kFront + size + kAlignments + kPage - 1) / kPage * kPage;
    if (needed > pages_bytes_) map(needed);
    uint8_t* end = pages_ + pages_bytes_;
    start_ = end - size;
    start_ -= (reinterpret_cast<uintptr_t>(start_) - alignment) % kAlignments;
    memset(start_ - kFront, kCanary, kFront);
    memcpy(start_, content_.data(), size);
    memset(start_ + size, kCanary, end - start_ - size);
  }

  std::string complaint() const {
    for (const uint8_t* byte = start_ - kFront; byte < start_; ++byte) {
      if (*byte != kCanary) return "byte " + std::to_string(byte - start_) + " in front of it was written";
    }
    const uint8_t* behind = start_ + content_.size();
    for (const uint8_t* byte = behind; byte < pages_ + pages_bytes_; ++byte) {
      if (*byte != kCanary) return "byte " + std::to_string(byte - behind) + " behind it was written";
    }
    if (!writable_ && memcmp(start_, content_.data(), content_.size()) != 0) return "it is read-only and was written";
    return "";
  }

  // Writes a pointer that a structure in this memory holds. The content that has to stay is then another.
  void point(size_t offset, const uint8_t* target) {
    if (offset + sizeof target > content_.size()) abort();
    memcpy(start_ + offset, &target, sizeof target);
    memcpy(content_.data() + offset, &target, sizeof target);
  }

  uint8_t* start() const { return start_; }
  void write_if_writable() const {
    if (writable_) fwrite(start_, 1, content_.size(), stdout);
  }

 private:
  void map(size_t bytes) {
    if (pages_ != nullptr) munmap(pages_, pages_bytes_ + kPage);
    void* pages = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pages_ = static_cast<uint8_t*>(pages);
    pages_bytes_ = bytes;
    if (pages == MAP_FAILED || mprotect(pages_ + bytes, kPage, PROT_NONE) != 0) abort();
  }

  uint8_t* pages_ = nullptr;
  size_t pages_bytes_ = 0;
  uint8_t* start_ = nullptr;
  std::vector<uint8_t> content_;
  bool writable_ = false;
};

// Integers and pointers travel alike on x86-64 and aarch64, and what a function does not declare it does not see.
using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                             int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

int64_t call(void* symbol, const int64_t* a) {
  return reinterpret_cast<Function>(symbol)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
                                            a[12], a[13], a[14], a[15]);
}

bool returns_text(const std::string& name) {
  const std::string ending = "_name";
  return name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
}

void serve(void* library, std::vector<Memory>& memories) {
  std::string name(read_number<uint32_t>(), '\0');
  read_exactly(&name[0], name.size());
  const size_t memory_count = read_number<uint32_t>();
  const size_t pointer_count = read_number<uint32_t>();
  const size_t argument_count = read_number<uint32_t>();
  if (memories.size() < memory_count) memories.resize(memory_count);
  for (size_t i = 0; i < memory_count; ++i) memories[i].fill();
  for (size_t i = 0; i < pointer_count; ++i) {
    const uint32_t holder = read_number<uint32_t>();
    const size_t offset = read_number<uint64_t>();
    const uint32_t target = read_number<uint32_t>();
    const int64_t value = read_number<int64_t>();
    if (holder >= memory_count || target >= memory_count) abort();
    memories[holder].point(offset, memories[target].start() + value);
  }
  int64_t arguments[kMostArguments] = {};
  for (size_t i = 0; i < argument_count; ++i) {
    const uint32_t memory = read_number<uint32_t>();
    const int64_t value = read_number<int64_t>();
    if (i >= kMostArguments || (memory != kNoMemory && memory >= memory_count)) abort();
    arguments[i] = memory == kNoMemory ? value : reinterpret_cast<int64_t>(memories[memory].start() + value);
  }

  void* symbol = dlsym(library, name.c_str());
  const int64_t result = symbol == nullptr ? 0 : call(symbol, arguments);

  std::string complaint = symbol == nullptr ? "the library has no function " + name : "";
  for (size_t i = 0; i < memory_count && complaint.empty(); ++i) {
    const std::string memory_complaint = memories[i].complaint();
    if (!memory_complaint.empty()) complaint = "memory " + std::to_string(i) + ": " + memory_complaint;
  }
  write_number(result);
  write_text(symbol != nullptr && returns_text(name) && result != 0 ? reinterpret_cast<const char*>(result) : "");
  write_text(complaint);
  for (size_t i = 0; i < memory_count; ++i) memories[i].write_if_writable();
  fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  if (library == nullptr) {
    fprintf(stderr, "usage: %s LIBRARY: %s\n", argv[0], argc == 2 ? dlerror() : "one argument");
    return 2;
  }
  std::vector<Memory> memories;
  for (;;) serve(library, memories);
}
