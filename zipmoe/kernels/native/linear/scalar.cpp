// Both orders, written as their definitions, one output after the other. Tests compare the vector kernels with this
// code. Backends without a vector kernel use it.
#include <float.h>
#include <math.h>
#include <string.h>

#include "cascade/isa/scalar.h"
#include "linear/linear.h"
#include "linear/cascade.h"

namespace zipmoe::linear {
namespace {

float widen(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t round_to_bf16(float value) {
  if (isnan(value)) return 0x7fc0;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float fold(float* lanes, size_t count) {
  for (size_t half = count / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

float sum_in_lanes(const uint16_t* x, const uint16_t* weight, size_t k) {
  float lanes[64] = {}, tail[8] = {};
  size_t i = 0;
  for (; i < k / 64 * 64; ++i) lanes[i % 64] = fmaf(widen(x[i]), widen(weight[i]), lanes[i % 64]);
  for (; i < k / 16 * 16; ++i) tail[i % 8] = fmaf(widen(x[i]), widen(weight[i]), tail[i % 8]);
  float sum = fold(lanes, 64) + fold(tail, 8);
  for (; i < k; ++i) sum = fmaf(widen(x[i]), widen(weight[i]), sum);
  return sum;
}

float without_subnormals(float value) { return fabsf(value) < FLT_MIN ? copysignf(0.0f, value) : value; }

float add_product(float sum, uint16_t x, uint16_t weight) {
  return without_subnormals(fmaf(without_subnormals(widen(x)), without_subnormals(widen(weight)), sum));
}

float sum_in_pairs(const uint16_t* x, const uint16_t* weight, const Task& task) {
  const size_t k = task.k, k_block = task.k_block, k_part = task.k_part;
  float sum = 0, part = 0;
  for (size_t begin = 0; begin < k; begin += k_block) {
    const size_t end = begin + k_block < k ? begin + k_block : k;
    float block = 0;
    for (size_t i = begin; i < end; i += 2) {
      const bool pair = i + 1 < end;
      block = add_product(block, pair ? x[i + 1] : 0, pair ? weight[i + 1] : 0);
      block = add_product(block, x[i], weight[i]);
    }
    part = begin % k_part == 0 ? block : part + block;
    if (end % k_part == 0 || end == k) sum = end <= k_part ? part : sum + part;
  }
  return sum;
}

size_t no_bytes(size_t, size_t) { return 0; }
size_t one_row(size_t, size_t) { return 1; }
void pack_nothing(const Task&, void*) {}

template <Order order>
void multiply(const Task& task, const void*, const uint16_t* weight, size_t first, size_t rows, void*) {
  for (size_t row = 0; row < rows; ++row, weight += task.k) {
    for (size_t m = 0; m < task.m; ++m) {
      const uint16_t* x = task.x + m * task.k;
      float sum = order == kLanes ? sum_in_lanes(x, weight, task.k) : sum_in_pairs(x, weight, task);
      if (task.bias != nullptr) sum += widen(task.bias[first + row]);
      task.out[m * task.n + first + row] = round_to_bf16(order == kLanes ? sum : without_subnormals(sum));
    }
  }
}

constexpr Kernel kScalar[kOrders] = {
    {no_bytes, no_bytes, one_row, pack_nothing, multiply<kLanes>},
    {no_bytes, no_bytes, one_row, pack_nothing, multiply<kPairs>},
};

}  // namespace

const Kernel* kernel_scalar(Order order) { return &kScalar[order]; }

bool cascade_rows_scalar(const cascade::Block& block, cascade::Scratch* scratch, const uint8_t* sm,
                       const Consumer& consumer) {
  return each_row<cascade::isa::Scalar>(block, scratch, sm, consumer);
}

}  // namespace zipmoe::linear
