// Both orders of values, written as their definitions, one output after the other. Tests compare the vector kernels
// with this code. Machines without a vector kernel use it.
#include <float.h>

#include "attention/math.h"

namespace zipmoe::attention {
namespace {

float without_subnormals(float value) { return fabsf(value) < FLT_MIN ? copysignf(0.0f, value) : value; }

float add_product(float sum, float weight, float value) {
  return without_subnormals(fmaf(without_subnormals(weight), without_subnormals(value), sum));
}

struct Terms {
  const float* weights;
  Tokens tokens;

  float weight(size_t t) const { return widen(round_to_bf16(weights[t])); }
};

float sum_in_fours(const Values& task, Terms terms) {
  float sum[4] = {};
  const size_t whole = task.tokens / 4 * 4;
  for (size_t t = 0; t < task.tokens; ++t) {
    const float weight = terms.weight(t), value = widen(*terms.tokens.next());
    const volatile float rounded = weight * value;
    if (t < whole) {
      sum[t % 4] = fmaf(weight, value, sum[t % 4]);
    } else {
      sum[0] += rounded;
    }
  }
  return sum[0] + sum[1] + sum[2] + sum[3];
}

float sum_in_pairs(const Values& task, Terms terms) {
  float sum = 0;
  for (size_t begin = 0; begin < task.tokens; begin += task.block) {
    const size_t end = begin + task.block < task.tokens ? begin + task.block : task.tokens;
    float block = 0;
    for (size_t t = begin; t < end; t += 2) {
      const float even = widen(*terms.tokens.next());
      const bool pair = t + 1 < end;
      block = add_product(block, pair ? terms.weight(t + 1) : 0, pair ? widen(*terms.tokens.next()) : 0);
      block = add_product(block, terms.weight(t), even);
    }
    sum = begin == 0 ? block : sum + block;
  }
  return without_subnormals(sum);
}

size_t no_bytes(const Values&) { return 0; }

template <float (*of_number)(const Values&, Terms)>
void sum(const Values& task, void*) {
  for (size_t group = 0; group < task.groups; ++group) {
    for (size_t i = 0; i < task.numbers; ++i) {
      const Terms terms = {task.weights + group * task.tokens, Tokens(task, i)};
      task.out[group * task.numbers + i] = round_to_bf16(of_number(task, terms));
    }
  }
}

constexpr Kernel kScalar[kValueOrders] = {{no_bytes, sum<sum_in_fours>}, {no_bytes, sum<sum_in_pairs>}};

}  // namespace

const Kernel* kernel_scalar(ValueOrder order) { return &kScalar[order]; }

}  // namespace zipmoe::attention
