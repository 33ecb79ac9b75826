// The interpreter: one call computes all operations between two gates.
#include <string.h>
#include <time.h>

#include "attention/attention.h"
#include "linear/linear.h"
#include "nibble/nibble.h"
#include "program/program.h"
#include "tile/tile.h"

namespace zipmoe::program {
namespace {

int gather(const Operation& op, const Frame& frame) {
  const int64_t* ids = reinterpret_cast<const int64_t*>(at(op.a, frame));
  const int64_t bytes = op.numbers[1], step = op.numbers[2];
  char* out = at(op.out, frame);
  for (int64_t i = 0; i < op.numbers[3]; ++i) {
    if (ids[i] < 0 || ids[i] >= op.numbers[0]) return -5;
    memcpy(out + i * bytes, at(op.b, frame) + ids[i] * step, bytes);
  }
  return 0;
}

int write_kv(const Operation& op, const Frame& frame) {
  const int64_t rows = op.sizes[0], heads = op.sizes[1], numbers = op.sizes[2];
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(at(op.a, frame)) + row * op.a.strides[0];
    uint16_t* to = reinterpret_cast<uint16_t*>(at(op.out, frame)) + frame.slots[row] * numbers;
    for (int64_t head = 0; head < heads; ++head) {
      const uint16_t* x = from + head * op.a.strides[1];
      uint16_t* out = to + head * op.out.strides[1];
      if (op.a.strides[2] == 1) {
        memcpy(out, x, numbers * sizeof(uint16_t));
      } else {
        for (int64_t i = 0; i < numbers; ++i) out[i] = x[i * op.a.strides[2]];
      }
    }
  }
  return 0;
}

int multiply(const Operation& op, const Frame& frame) {
  const int backend = static_cast<int>(frame.backend), order = static_cast<int>(op.numbers[0]);
  const size_t m = op.numbers[1], n = op.numbers[2], k = op.numbers[3], block = op.numbers[4], parts = op.numbers[5];
  const uint16_t* x = reinterpret_cast<const uint16_t*>(at(op.a, frame));
  const uint16_t* bias = reinterpret_cast<const uint16_t*>(op.numbers[6]);
  uint16_t* out = reinterpret_cast<uint16_t*>(at(op.out, frame));
  const int64_t count = op.numbers[7] == kRows ? frame.parts[op.b.base] : -op.numbers[8];
  if (count < 0) {
    const auto product = order == linear::kPairs ? zipmoe_tile_linear : zipmoe_nibble_linear;
    const uint8_t* form = reinterpret_cast<const uint8_t*>(at(op.b, frame));
    return product(backend, x, form, -count, bias, out, m, n, k, block, parts, frame.threads);
  }
  if (count == 0) {
    const uint16_t* weight = reinterpret_cast<const uint16_t*>(at(op.b, frame));
    return zipmoe_linear(backend, order, x, weight, bias, out, m, n, k, block, parts, frame.threads);
  }
  const zipmoe_part* weights = reinterpret_cast<const zipmoe_part*>(frame.bases[op.b.base]);
  return zipmoe_linear_cascade(backend, order, x, weights, count, bias, out, m, n, k, block, parts, 0, frame.threads);
}

int attend(const Operation& op, const Frame& frame) {
  const int64_t* numbers = op.numbers;
  const Context& context = frame.contexts[numbers[kContext]];
  const size_t heads = numbers[kHeads], groups = numbers[kGroups];
  const int backend = static_cast<int>(frame.backend);
  const uint16_t* query = reinterpret_cast<const uint16_t*>(at(op.a, frame));
  int result = zipmoe_attention_scores(
      backend, static_cast<int>(numbers[kScores]), query, reinterpret_cast<const uint16_t*>(at(op.b, frame)),
      context.entries, context.runs, frame.scores, context.rows, heads, groups, numbers[kKeyNumbers], numbers[kSlots],
      static_cast<uint32_t>(numbers[kScaling]), frame.threads);
  if (result != 0) return result;
  for (int64_t row = 0; row < context.rows; ++row) {
    const int64_t begin = context.entries[2 * row + 1], tokens = context.entries[2 * row + 3] - begin;
    const size_t place = heads * groups * begin;
    result = softmax(frame.scores + place, frame.weights + place, heads * groups, tokens, numbers[kLanes],
                     frame.exponentials);
    if (result != 0) return result;
  }
  return zipmoe_attention_values(
      backend, static_cast<int>(numbers[kValues]), frame.weights, reinterpret_cast<const uint16_t*>(numbers[kAddress]),
      context.entries, context.runs, reinterpret_cast<uint16_t*>(at(op.out, frame)), context.rows, heads, groups,
      numbers[kValueNumbers], numbers[kSlots], numbers[kBlock], frame.threads);
}

int run_one(const Operation& op, const Frame& frame) {
  switch (op.code) {
    case kGather: return gather(op, frame);
    case kRowSum: return row_sums(op, frame);
    case kSoftmax:
      return softmax(reinterpret_cast<const float*>(at(op.a, frame)), reinterpret_cast<float*>(at(op.out, frame)),
                     op.numbers[0], op.numbers[1], op.numbers[2], frame.exponentials);
    case kTopK: return top_k(op, frame);
    case kLinear: return multiply(op, frame);
    case kKvWrite: return write_kv(op, frame);
    case kAttend: return attend(op, frame);
    case kAddRows: return add_rows(op, frame);
    default: return op.code >= 0 && op.code < kGather ? elementwise(op, frame) : -8;
  }
}

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

}  // namespace
}  // namespace zipmoe::program

using zipmoe::program::Frame;
using zipmoe::program::Operation;

size_t zipmoe_program_operation_bytes() { return sizeof(Operation); }

size_t zipmoe_program_frame_bytes() { return sizeof(Frame); }

int zipmoe_program_run(const Operation* operations, size_t count, const Frame* frame) {
  for (size_t i = 0; i < count; ++i) {
    const int64_t begin = frame->spent_ns != nullptr ? zipmoe::program::now_ns() : 0;
    if (const int result = zipmoe::program::run_one(operations[i], *frame)) return result;
    if (frame->spent_ns != nullptr) frame->spent_ns[operations[i].code] += zipmoe::program::now_ns() - begin;
  }
  return 0;
}
