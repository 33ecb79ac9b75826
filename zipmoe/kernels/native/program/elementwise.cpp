// Elementwise operations, with torch's arithmetic: inputs are converted to fp32, and the result is rounded once.
#include <math.h>
#include <string.h>

#include "program/numbers.h"
#include "program/program.h"

namespace zipmoe::program {
namespace {

constexpr int64_t kAtOnce = 256;  // numbers that are converted at a time

constexpr int64_t kBytes[kTypes] = {2, 4, 8, 1, 8};

// Converts n numbers to fp32.
ZIPMOE_ALSO_AVX2 void load(const char* from, int32_t type, int64_t stride, int64_t n, float* to) {
  if (type == kBf16) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(from);
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = widen(x[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = widen(x[i * stride]);
    }
  } else if (type == kFp32) {
    const float* x = reinterpret_cast<const float*>(from);
    if (stride == 1) {
      memcpy(to, x, n * sizeof(float));
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = x[i * stride];
    }
  } else {
    const int64_t* x = reinterpret_cast<const int64_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(x[i * stride]);
  }
}

ZIPMOE_ALSO_AVX2 void store(const float* from, int32_t type, int64_t stride, int64_t n, char* to) {
  if (type == kBf16) {
    uint16_t* x = reinterpret_cast<uint16_t*>(to);
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) x[i] = rounded(from[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) x[i * stride] = rounded(from[i]);
    }
  } else {
    float* x = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < n; ++i) x[i * stride] = from[i];
  }
}

ZIPMOE_ALSO_AVX2 bool apply(int32_t function, float* x, const float* y, int64_t n) {
  switch (function) {
    case kAdd: for (int64_t i = 0; i < n; ++i) x[i] = x[i] + y[i]; return true;
    case kMul: for (int64_t i = 0; i < n; ++i) x[i] = x[i] * y[i]; return true;
    case kSub: for (int64_t i = 0; i < n; ++i) x[i] = x[i] - y[i]; return true;
    case kDiv: for (int64_t i = 0; i < n; ++i) x[i] = x[i] / y[i]; return true;
    default: return false;
  }
}

ZIPMOE_ALSO_AVX2 bool apply(int32_t function, float* x, int64_t n) {
  switch (function) {
    case kNegate: for (int64_t i = 0; i < n; ++i) x[i] = -x[i]; return true;
    case kSquare: for (int64_t i = 0; i < n; ++i) x[i] = x[i] * x[i]; return true;
    case kRsqrt: for (int64_t i = 0; i < n; ++i) x[i] = 1.0f / sqrtf(x[i]); return true;
    default: return false;
  }
}

// The innermost run of an operation: n numbers of each operand.
struct Run {
  char* out;
  const char* a;
  const char* b;
  int64_t n;
};

bool copy_same(const Operation& op, const Run& run) {
  const int64_t bytes = kBytes[op.out.type], from = op.a.strides[kDims - 1], to = op.out.strides[kDims - 1];
  if (from == 1 && to == 1) {
    memcpy(run.out, run.a, run.n * bytes);
  } else {
    for (int64_t i = 0; i < run.n; ++i) memcpy(run.out + i * to * bytes, run.a + i * from * bytes, bytes);
  }
  return true;
}

bool look_up(const Operation& op, const Run& run) {
  const uint16_t* x = reinterpret_cast<const uint16_t*>(run.a);
  const uint16_t* table = reinterpret_cast<const uint16_t*>(run.b);
  uint16_t* out = reinterpret_cast<uint16_t*>(run.out);
  const int64_t from = op.a.strides[kDims - 1], to = op.out.strides[kDims - 1];
  for (int64_t i = 0; i < run.n; ++i) out[i * to] = table[x[i * from]];
  return true;
}

// Complex numbers in the order of torch's own product: (ar br - ai bi, ar bi + ai br).
bool multiply_complex(const Operation& op, const Run& run) {
  const float* a = reinterpret_cast<const float*>(run.a);
  const float* b = reinterpret_cast<const float*>(run.b);
  float* out = reinterpret_cast<float*>(run.out);
  const int64_t sa = 2 * op.a.strides[kDims - 1], sb = 2 * op.b.strides[kDims - 1], so = 2 * op.out.strides[kDims - 1];
  for (int64_t i = 0; i < run.n; ++i, a += sa, b += sb, out += so) {
    const float real = a[0] * b[0] - a[1] * b[1];
    out[1] = a[0] * b[1] + a[1] * b[0];
    out[0] = real;
  }
  return true;
}

bool compute(const Operation& op, const Run& run) {
  float x[kAtOnce], y[kAtOnce];
  const int64_t so = op.out.strides[kDims - 1], sa = op.a.strides[kDims - 1], sb = op.b.strides[kDims - 1];
  if (op.code == kScalar || op.code == kFill) {
    for (float& each : y) each = op.scalar;
  } else if (op.code == kBinary && sb == 0) {
    load(run.b, op.b.type, 0, kAtOnce < run.n ? kAtOnce : run.n, y);
  }
  for (int64_t done = 0; done < run.n; done += kAtOnce) {
    const int64_t n = run.n - done < kAtOnce ? run.n - done : kAtOnce;
    if (op.code != kFill) load(run.a + done * sa * kBytes[op.a.type], op.a.type, sa, n, x);
    if (op.code == kBinary && sb != 0) load(run.b + done * sb * kBytes[op.b.type], op.b.type, sb, n, y);
    if (op.code == kUnary ? !apply(op.variant, x, n)
                          : (op.code == kBinary || op.code == kScalar) && !apply(op.variant, x, y, n)) {
      return false;
    }
    store(op.code == kFill ? y : x, op.out.type, so, n, run.out + done * so * kBytes[op.out.type]);
  }
  return true;
}

bool computes(const Operation& op) {
  const auto number = [](const Operand& each) { return each.type == kBf16 || each.type == kFp32; };
  switch (op.code) {
    case kCopy: return op.a.type == op.out.type || (number(op.out) && (number(op.a) || op.a.type == kInt64));
    case kTable: return op.a.type == kBf16 && op.out.type == kBf16;
    case kComplexMul: return op.a.type == kComplex64 && op.b.type == kComplex64 && op.out.type == kComplex64;
    case kBinary: return number(op.a) && number(op.b) && number(op.out);
    default: return (op.code == kFill || number(op.a)) && number(op.out);
  }
}

}  // namespace

int elementwise(const Operation& op, const Frame& frame) {
  if (!computes(op)) return -8;
  const bool same = op.code == kCopy && op.a.type == op.out.type;
  const auto run_one = same ? copy_same : op.code == kTable ? look_up : op.code == kComplexMul ? multiply_complex : compute;
  const int64_t bytes_out = kBytes[op.out.type], bytes_a = kBytes[op.a.type], bytes_b = kBytes[op.b.type];
  char* out = at(op.out, frame);
  const char* a = at(op.a, frame);
  const char* b = at(op.b, frame);
  for (int64_t i = 0; i < op.sizes[0]; ++i) {
    for (int64_t j = 0; j < op.sizes[1]; ++j) {
      for (int64_t k = 0; k < op.sizes[2]; ++k) {
        const auto place = [&](const Operand& each) { return i * each.strides[0] + j * each.strides[1] + k * each.strides[2]; };
        const Run run = {out + place(op.out) * bytes_out, a + place(op.a) * bytes_a,
                         op.code == kTable ? b : b + place(op.b) * bytes_b, op.sizes[3]};
        if (!run_one(op, run)) return -8;
      }
    }
  }
  return 0;
}

// The sum of a row with itself and others is rounded after each addition, as torch's `index_add_` does.
int add_rows(const Operation& op, const Frame& frame) {
  const int64_t* places = reinterpret_cast<const int64_t*>(at(op.b, frame));
  const int64_t length = op.numbers[1], bytes = kBytes[op.out.type];
  if (op.out.type != op.a.type || (op.out.type != kBf16 && op.out.type != kFp32)) return -8;
  for (int64_t i = 0; i < op.numbers[2]; ++i) {
    if (places[i] < 0 || places[i] >= op.numbers[0]) return -5;
    char* out = at(op.out, frame) + places[i] * op.out.strides[0] * bytes;
    const char* row = at(op.a, frame) + i * op.a.strides[0] * bytes;
    for (int64_t begin = 0; begin < length; begin += kAtOnce) {
      const int64_t n = length - begin < kAtOnce ? length - begin : kAtOnce;
      float x[kAtOnce], y[kAtOnce];
      load(out + begin * bytes, op.out.type, 1, n, x);
      load(row + begin * bytes, op.a.type, 1, n, y);
      apply(kAdd, x, y, n);
      store(x, op.out.type, 1, n, out + begin * bytes);
    }
  }
  return 0;
}

}  // namespace zipmoe::program
