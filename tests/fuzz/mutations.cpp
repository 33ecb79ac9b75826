// Runs the fuzz target without libFuzzer: its corpus, then as many mutations of it as asked for, always the same ones.
//
//   mutations COUNT FILE...       prints "EXECUTIONS executions, ACCEPTED accepted"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <string>
#include <vector>

namespace zipmoe::fuzz {
bool run(const uint8_t* bytes, size_t nbytes);
}

namespace {

using Bytes = std::vector<uint8_t>;

uint64_t state = 0x9e3779b97f4a7c15;

// xorshift64*: the same numbers everywhere, below `limit`.
size_t below(size_t limit) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return limit == 0 ? 0 : (state * 0x2545f4914f6cdd1d >> 16) % limit;
}

Bytes read_file(const char* path) {
  Bytes bytes;
  FILE* file = fopen(path, "rb");
  if (file == nullptr) {
    perror(path);
    exit(2);
  }
  uint8_t block[4096];
  for (size_t count; (count = fread(block, 1, sizeof block, file)) > 0;) bytes.insert(bytes.end(), block, block + count);
  fclose(file);
  return bytes;
}

void mutate(Bytes& bytes, const std::vector<Bytes>& corpus) {
  // Most of what a decoder believes stands at the front.
  const size_t reach = below(2) ? bytes.size() : std::min<size_t>(bytes.size(), 64);
  const size_t at = below(reach);
  const size_t left = bytes.size() - std::min(at, bytes.size());
  static constexpr uint8_t kEdges[] = {0, 1, 3, 4, 15, 16, 63, 64, 0x7f, 0x80, 0xfe, 0xff};
  switch (below(8)) {
    case 0:
      if (left > 0) bytes[at] ^= 1 << below(8);
      break;
    case 1:
      if (left > 0) bytes[at] = static_cast<uint8_t>(below(256));
      break;
    case 2:
      for (size_t i = 0, width = 1 << below(4); i < width && i < left; ++i) bytes[at + i] = kEdges[below(sizeof kEdges)];
      break;
    case 3:
      if (left > 0) bytes[at] = static_cast<uint8_t>(bytes[at] + below(17) - 8);
      break;
    case 4:
      bytes.erase(bytes.begin() + at, bytes.begin() + at + below(left + 1));
      break;
    case 5:
      bytes.insert(bytes.begin() + at, 1 + below(64), static_cast<uint8_t>(below(256)));
      break;
    case 6:
      bytes.resize(at + below(left + 1));
      break;
    default: {
      const Bytes& other = corpus[below(corpus.size())];
      const size_t from = below(other.size());
      const size_t count = std::min(below(other.size() - from + 1), left);
      std::copy_n(other.begin() + from, count, bytes.begin() + at);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: %s COUNT FILE...\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> corpus;
  for (int i = 2; i < argc; ++i) corpus.push_back(read_file(argv[i]));
  const size_t count = strtoul(argv[1], nullptr, 10);
  size_t executions = 0, accepted = 0;
  const auto execute = [&](const Bytes& bytes) {
    ++executions;
    accepted += zipmoe::fuzz::run(bytes.data(), bytes.size());
  };
  for (const Bytes& bytes : corpus) execute(bytes);
  for (size_t i = 0; i < count; ++i) {
    Bytes bytes = corpus[below(corpus.size())];
    for (size_t steps = 1 + below(4); steps > 0; --steps) mutate(bytes, corpus);
    execute(bytes);
  }
  printf("%zu executions, %zu accepted\n", executions, accepted);
}
