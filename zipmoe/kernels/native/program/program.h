// Operations of a recorded pass, and the C interface that replays them.
//
// An operation is one ATen operation of the recording, or one of our kernels, on tensors with fixed places, sizes and
// strides. Each operation gives the bits of torch on CPUs. What varies between two replays stands in the frame: the
// token slots and the contexts of the rows, the matrices of an expert, scratch memory. `zipmoe/kernels/program.py` has the
// same structures, and `zipmoe/model/program` the readable twin of every operation.
#ifndef ZIPMOE_KERNELS_PROGRAM_H
#define ZIPMOE_KERNELS_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "planes/planes.h"

namespace zipmoe::program {

enum Type : int32_t { kBf16 = 0, kFp32 = 1, kInt64 = 2, kByte = 3, kComplex64 = 4, kTypes = 5 };

enum Code : int32_t {
  kBinary = 0,       // out = a (variant) b
  kScalar = 1,       // out = a (variant) scalar
  kUnary = 2,        // out = variant(a), fp32 arithmetic
  kCopy = 3,         // out = a, converted to the type of out
  kTable = 4,        // out = table[a], both bf16; b is the table of 65,536 numbers
  kFill = 5,         // out = scalar
  kComplexMul = 6,   // out = a * b, complex64
  kGather = 7,       // row i of out = row a[i] of b; numbers: rows of b, bytes of a row, bytes from a row of b to the
                     // next, rows of out
  kRowSum = 8,       // sum of each row; variant 1 divides by the length. numbers: rows, length, lanes of torch's sum
  kSoftmax = 9,      // fp32 rows; numbers: rows, length, lanes of torch's vectors
  kTopK = 10,        // a: fp32 rows; out: values, b: int64 indices. numbers: rows, length, k, whether sorted
  kLinear = 11,      // a: x, b: weight. numbers: order, m, n, k, k_block, parts, address of the bias, form of the weight
                     // (Form), bytes of the weight in that form
  kKvWrite = 12,     // writes a (rows, heads, numbers) at the frame's token slots of out (heads, slots, numbers)
  kAttend = 13,      // a: query, b: keys, out: output; see Attention
  kAddRows = 14,     // row b[i] of out += row i of a, in order. numbers: rows of out, length, rows of a. The first
                     // strides of out and a are the numbers from a row to the next
  kCodes = 15
};

// Form of a linear's weight. A weight at a base of the frame has kRows; the frame's parts then tell its form.
enum Form : int64_t { kRows = 0, kTileForm = 1, kNibbleForm = 2 };

enum Function : int32_t { kAdd = 0, kMul = 1, kSub = 2, kDiv = 3, kNegate = 4, kSquare = 5, kRsqrt = 6 };

constexpr int kDims = 4, kNumbers = 12, kBases = 8;

struct Operand {
  int32_t base;  // index into the frame's bases; base 0 is address 0, so that `offset` is an address
  int32_t type;
  int64_t offset;          // in bytes
  int64_t strides[kDims];  // in elements; 0 where the operand is broadcast
};

struct Operation {
  int32_t code, variant;
  float scalar;
  int32_t reserved;
  int64_t sizes[kDims];
  Operand out, a, b;
  int64_t numbers[kNumbers];
};

// The tokens that each row sees: `Entry`, one more than there are rows, and `Run` of attention/attention.h.
struct Context {
  const int64_t* entries;
  const int64_t* runs;
  int64_t rows;
};

// Exponential functions of torch's own library, one vector each; null where the machine or torch has none.
struct Exponentials {
  const void* of_16;
  const void* of_8;
};

struct Frame {
  char* bases[kBases];
  // 0: the base is a bf16 matrix; above 0: the number of cascade parts in the table at the base; below 0: minus the bytes
  // of a matrix at the base in the in-memory form of the linear's order.
  int64_t parts[kBases];
  const Context* contexts;
  const int64_t* slots;    // token slot of each row
  float* scores;           // heads x tokens of all rows numbers each
  float* weights;
  int64_t threads, backend;
  Exponentials exponentials;
  int64_t* spent_ns;       // processor time of the calling thread for each code, added up; null for none
};

// numbers of kAttend: order of the scores, heads, groups, key numbers, slots, bits of the scaling, order of the values,
// block of the values, address of the values, numbers of a value, index of the context, lanes of the softmax.
enum Attention { kScores, kHeads, kGroups, kKeyNumbers, kSlots, kScaling, kValues, kBlock, kAddress, kValueNumbers, kContext, kLanes };

inline char* at(const Operand& operand, const Frame& frame) { return frame.bases[operand.base] + operand.offset; }

// Each returns 0, or a negative number if the operation has types or a variant that it does not know.
int elementwise(const Operation& operation, const Frame& frame);
int row_sums(const Operation& operation, const Frame& frame);
int top_k(const Operation& operation, const Frame& frame);
int add_rows(const Operation& operation, const Frame& frame);
int softmax(const float* x, float* out, size_t rows, size_t length, int64_t lanes, const Exponentials& exponentials);

#if defined(__x86_64__)
void softmax_avx2(const float* x, float* out, size_t rows, size_t length, const void* exponential);
void softmax_avx512(const float* x, float* out, size_t rows, size_t length, const void* exponential);
#endif

}  // namespace zipmoe::program

// Sizes of the two structures, for a check by the caller.
ZIPMOE_EXPORT size_t zipmoe_program_operation_bytes();
ZIPMOE_EXPORT size_t zipmoe_program_frame_bytes();

// Runs operations one after the other. Addresses are not checked. Returns 0 when done; -2 when a cascade chunk is
// corrupt; -3 without memory; -5 for an index outside a table; other negative numbers for an operation that no code
// here computes. After an error the outputs are undefined.
ZIPMOE_EXPORT int zipmoe_program_run(const zipmoe::program::Operation* operations, size_t count,
                                     const zipmoe::program::Frame* frame);

#endif
