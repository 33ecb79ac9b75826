// The order "pairs" from a cascade chunk, with AVX-512: 64 columns of 16 rows are recovered and turned in the
// first-level cache.
#include "cascade/columns.h"
#include "cascade/isa/avx512.h"
#include "linear/cascade.h"
#include "linear/pairs_avx512.h"

namespace zipmoe::linear {
namespace {

using Isa = cascade::isa::Avx512;
using Columns = cascade::Columns<Isa, kOutputs>;

constexpr size_t kSquare = cascade::kGroup;  // columns that are decoded and turned at a time
constexpr size_t kSquarePairs = kSquare / 2;

bool takes(const Task& task, const cascade::Chunk& chunk) {
  return task.m <= kStreamRows && task.k > 0 && task.k % kSquare == 0 && task.k_block % kSquare == 0 &&
         task.k <= task.k_part && chunk.block_rows % kOutputs == 0;
}

size_t square_bytes(size_t m, size_t k) { return m * k * sizeof(uint16_t); }

// Packs 64 inputs of all rows, then the next 64 inputs, so that the inputs of a square are contiguous.
void pack_squares(const Task& task, void* packed) {
  uint16_t* to = static_cast<uint16_t*>(packed);
  for (size_t at = 0; at < task.k; at += kSquare) {
    for (size_t row = 0; row < task.m; ++row, to += kSquare) {
      memcpy(to, task.x + row * task.k + at, kSquare * sizeof *to);
    }
  }
}

// 64 columns of 16 rows, recovered, not yet turned.
struct Square {
  alignas(64) uint8_t row[kOutputs][2 * kSquare];

  inline void decode(Columns& columns, const Ahead& ahead, size_t group) {
    for (size_t i = 0; i < kOutputs; ++i) {
      ahead.bring(group + i);
      columns.group(i, row[i]);
    }
  }

  // Turns the square to one vector per pair of columns.
  inline void turn_to(uint16_t* to) const {
    for (size_t half = 0; half < 2; ++half) {
      __m512i r[kPairsAVector];
      for (size_t i = 0; i < kOutputs; ++i) r[i] = _mm512_load_si512(row[i] + half * 64);
      turn(r);
      for (size_t i = 0; i < kPairsAVector; ++i) _mm512_store_si512(to + (half * kPairsAVector + i) * kStep, r[i]);
    }
  }
};

// --- few rows of x: multiplies with a square while the next square is recovered --------------------------------------

template <size_t M>
struct Sums {
  __m512 total[M], sum[M];

  Sums() {
    for (size_t m = 0; m < M; ++m) total[m] = sum[m] = _mm512_setzero_ps();
  }

  inline __attribute__((always_inline)) void add(const uint16_t* turned, const uint16_t* x) {
    const __m512i weights = _mm512_load_si512(turned);
    for (size_t m = 0; m < M; ++m) sum[m] = multiply_add(sum[m], weights, pair_of(x + m * kSquare));
  }

  // Call after the square at `at`. If the square ends a block of inputs, adds the block's sum to the total.
  inline void end_square(const Task& task, size_t at) {
    const size_t end = at + kSquare;
    if (end % task.k_block != 0 && end < task.k) return;
    for (size_t m = 0; m < M; ++m) {
      total[m] = end <= task.k_block ? sum[m] : _mm512_add_ps(total[m], sum[m]);
      sum[m] = _mm512_setzero_ps();
    }
  }
};

template <size_t M>
void stream(const Task& task, const uint16_t* x, Columns& columns, size_t first, size_t count, const Ahead& ahead,
            size_t group) {
  Square square;
  alignas(64) uint16_t turned[kSquarePairs * kStep];
  Sums<M> sums;
  square.decode(columns, ahead, group);
  for (size_t at = 0; at + kSquare < task.k; at += kSquare, x += M * kSquare) {
    columns.patch(square.row);
    square.turn_to(turned);
    group += kOutputs;
    for (size_t i = 0; i < kOutputs; ++i) {
      ahead.bring(group + i);
      columns.group(i, square.row[i]);
      sums.add(turned + 2 * i * kStep, x + 4 * i);
      sums.add(turned + (2 * i + 1) * kStep, x + 4 * i + 2);
    }
    sums.end_square(task, at);
  }
  columns.patch(square.row);
  square.turn_to(turned);
  for (size_t i = 0; i < kSquarePairs; ++i) sums.add(turned + i * kStep, x + 2 * i);
  sums.end_square(task, task.k - kSquare);
  for (size_t m = 0; m < M; ++m) finish(task, m, first, count, sums.total[m]);
}

using Stream = void (*)(const Task&, const uint16_t*, Columns&, size_t, size_t, const Ahead&, size_t);
constexpr Stream kStreams[kStreamRows] = {stream<1>, stream<2>, stream<3>, stream<4>,
                                          stream<5>, stream<6>, stream<7>, stream<8>};

bool multiply(const Task& task, const void* packed, const cascade::Block& block, cascade::Scratch* scratch,
              const uint8_t* sm, size_t first, const Ahead& ahead) {
  Columns columns(block, scratch);
  for (size_t done = 0; done < block.rows; done += kOutputs) {
    const size_t some = smaller(block.rows - done, kOutputs);
    columns.begin(some, sm + done * task.k);
    kStreams[task.m - 1](task, static_cast<const uint16_t*>(packed), columns, first + done, some, ahead,
                         done * (task.k / kSquare));
  }
  return columns.done();
}

constexpr BlockKernel kBlocks = {takes, square_bytes, pack_squares, multiply};

}  // namespace

const BlockKernel* pairs_blocks_avx512() { return &kBlocks; }

}  // namespace zipmoe::linear
