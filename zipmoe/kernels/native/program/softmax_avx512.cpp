// Softmax with vectors of 16 numbers.
#include <immintrin.h>

#include "program/program.h"
#include "program/softmax.h"

namespace zipmoe::program {
namespace {

struct Sixteen {
  using Vector = __m512;
  static constexpr size_t kLanes = 16;
  static Vector load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
  static Vector less(Vector x, float y) { return _mm512_sub_ps(x, _mm512_set1_ps(y)); }
  static Vector plus(Vector x, Vector y) { return _mm512_add_ps(x, y); }
  static Vector exponential(Vector x, const void* function) {
    return reinterpret_cast<Vector (*)(Vector)>(const_cast<void*>(function))(x);
  }
  static float fold(Vector x) {
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4E));
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xB1));
    x = _mm512_add_ps(x, _mm512_shuffle_ps(x, x, 0x4E));
    x = _mm512_add_ps(x, _mm512_shuffle_ps(x, x, 0xB1));
    return _mm512_cvtss_f32(x);
  }
};

}  // namespace

void softmax_avx512(const float* x, float* out, size_t rows, size_t length, const void* exponential) {
  for (size_t row = 0; row < rows; ++row) softmax_row<Sixteen>(x + row * length, out + row * length, length, exponential);
}

}  // namespace zipmoe::program
