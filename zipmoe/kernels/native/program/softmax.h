// Softmax of fp32 rows in torch's order, for one kind of vector; included by a file for each instruction set.
//
// torch subtracts the largest number, adds the exponentials vector by vector into one vector, folds that vector and
// multiplies by the reciprocal of the sum. Fewer numbers than a vector has are added one after the other.
#ifndef ZIPMOE_KERNELS_PROGRAM_SOFTMAX_H
#define ZIPMOE_KERNELS_PROGRAM_SOFTMAX_H

#include <math.h>
#include <stddef.h>
#include <string.h>

namespace zipmoe::program {

// `V` has kLanes, load, store, less (subtraction), plus, exponential and fold.
template <class V>
void softmax_row(const float* x, float* out, size_t length, const void* exponential) {
  constexpr size_t lanes = V::kLanes;
  float most = -INFINITY;
  for (size_t i = 0; i < length; ++i) most = x[i] > most ? x[i] : most;
  size_t i = 0;
  for (; i + lanes <= length; i += lanes) V::store(out + i, V::exponential(V::less(V::load(x + i), most), exponential));
  if (i < length) {
    float tail[lanes] = {0};
    memcpy(tail, x + i, (length - i) * sizeof(float));
    V::store(tail, V::exponential(V::less(V::load(tail), most), exponential));
    memcpy(out + i, tail, (length - i) * sizeof(float));
  }
  float sum;
  if (length < lanes) {
    sum = out[0];
    for (size_t j = 1; j < length; ++j) sum += out[j];
  } else {
    typename V::Vector sums = V::load(out);
    size_t j = lanes;
    for (; j + lanes <= length; j += lanes) sums = V::plus(sums, V::load(out + j));
    if (j < length) {
      float tail[lanes];
      V::store(tail, sums);
      for (size_t lane = 0; j + lane < length; ++lane) tail[lane] += out[j + lane];
      sums = V::load(tail);
    }
    sum = V::fold(sums);
  }
  const float reciprocal = 1.0f / sum;
  for (size_t j = 0; j < length; ++j) out[j] *= reciprocal;
}

}  // namespace zipmoe::program

#endif
