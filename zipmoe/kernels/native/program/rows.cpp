// Operations on rows of fp32 numbers: sums in torch's order, the largest numbers, the choice of the softmax.
#include <algorithm>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pool/thread_memory.h"
#include "program/program.h"

namespace zipmoe::program {
namespace {

thread_local ThreadMemory pair_memory;

constexpr int kRows = 4, kLevels = 4;  // torch adds four vectors at a time, and keeps four levels of partial sums

// Sums of `kRows` interleaved columns of vectors with V lanes. After every `step` additions a level is added to the next
// one, so that no partial sum grows long.
template <int V>
float cascaded(const float* x, int64_t n) {
  const int64_t vectors = n / V, rounds = vectors / kRows;
  int64_t log = 0;
  while ((int64_t{1} << log) < rounds) ++log;
  const int64_t power = std::max<int64_t>(4, log / kLevels), step = int64_t{1} << power, mask = step - 1;
  float sums[kLevels][kRows][V];
  memset(sums, 0, sizeof sums);
  const auto add = [&](int64_t round) {
    for (int row = 0; row < kRows; ++row) {
      for (int lane = 0; lane < V; ++lane) sums[0][row][lane] += x[(round * kRows + row) * V + lane];
    }
  };
  int64_t round = 0;
  while (round + step <= rounds) {
    for (int64_t end = round + step; round < end; ++round) add(round);
    for (int level = 1; level < kLevels; ++level) {
      for (int row = 0; row < kRows; ++row) {
        for (int lane = 0; lane < V; ++lane) {
          sums[level][row][lane] += sums[level - 1][row][lane];
          sums[level - 1][row][lane] = 0;
        }
      }
      if ((round & (mask << (level * power))) != 0) break;
    }
  }
  for (; round < rounds; ++round) add(round);
  for (int level = 1; level < kLevels; ++level) {
    for (int row = 0; row < kRows; ++row) {
      for (int lane = 0; lane < V; ++lane) sums[0][row][lane] += sums[level][row][lane];
    }
  }
  for (int64_t vector = rounds * kRows; vector < vectors; ++vector) {
    for (int lane = 0; lane < V; ++lane) sums[0][0][lane] += x[vector * V + lane];
  }
  for (int row = 1; row < kRows; ++row) {
    for (int lane = 0; lane < V; ++lane) sums[0][0][lane] += sums[0][row][lane];
  }
  float sum = 0;
  for (int64_t i = vectors * V; i < n; ++i) sum += x[i];
  for (int lane = 0; lane < V; ++lane) sum += sums[0][0][lane];
  return sum;
}

float sum_of(const float* x, int64_t n, int64_t lanes) {
  if (n < lanes) return cascaded<1>(x, n);
  return lanes == 16 ? cascaded<16>(x, n) : cascaded<8>(x, n);
}

struct Ranked {
  float value;
  int64_t index;
};

}  // namespace

int row_sums(const Operation& op, const Frame& frame) {
  const int64_t rows = op.numbers[0], length = op.numbers[1];
  const float* x = reinterpret_cast<const float*>(at(op.a, frame));
  float* out = reinterpret_cast<float*>(at(op.out, frame));
  for (int64_t row = 0; row < rows; ++row) {
    const float sum = sum_of(x + row * length, length, op.numbers[2]);
    out[row] = op.variant == 1 ? sum / static_cast<float>(length) : sum;
  }
  return 0;
}

// The algorithms of the C++ library that torch uses; among equal numbers they decide which are taken.
int top_k(const Operation& op, const Frame& frame) {
  const int64_t rows = op.numbers[0], length = op.numbers[1], k = op.numbers[2];
  Ranked* ranked = static_cast<Ranked*>(pair_memory.get(length * sizeof(Ranked)));
  if (ranked == nullptr) return -3;
  const auto above = [](const Ranked& a, const Ranked& b) {
    return (isnan(a.value) && !isnan(b.value)) || a.value > b.value;
  };
  for (int64_t row = 0; row < rows; ++row) {
    const float* x = reinterpret_cast<const float*>(at(op.a, frame)) + row * length;
    float* values = reinterpret_cast<float*>(at(op.out, frame)) + row * k;
    int64_t* indices = reinterpret_cast<int64_t*>(at(op.b, frame)) + row * k;
    for (int64_t i = 0; i < length; ++i) ranked[i] = {x[i], i};
    if (k * 64 <= length) {
      std::partial_sort(ranked, ranked + k, ranked + length, above);
    } else {
      std::nth_element(ranked, ranked + k - 1, ranked + length, above);
      if (op.numbers[3]) std::sort(ranked, ranked + k - 1, above);
    }
    for (int64_t i = 0; i < k; ++i) {
      values[i] = ranked[i].value;
      indices[i] = ranked[i].index;
    }
  }
  return 0;
}

int softmax(const float* x, float* out, size_t rows, size_t length, int64_t lanes, const Exponentials& exponentials) {
#if defined(__x86_64__)
  if (lanes == 16 && exponentials.of_16 != nullptr) {
    softmax_avx512(x, out, rows, length, exponentials.of_16);
    return 0;
  }
  if (lanes == 8 && exponentials.of_8 != nullptr) {
    softmax_avx2(x, out, rows, length, exponentials.of_8);
    return 0;
  }
#else
  (void)x, (void)out, (void)rows, (void)length, (void)lanes, (void)exponentials;
#endif
  return -8;
}

}  // namespace zipmoe::program
