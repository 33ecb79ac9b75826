// The order "pairs" straight from a cascade, with AVX-512: 64 columns of 16 rows are decoded and turned in the first-level
// cache.
#include "cascade_columns.h"
#include "cascade_isa_avx512.h"
#include "linear_cascade.h"
#include "linear_pairs_avx512.h"

namespace zipmoe::linear {
namespace {

using cascade::kGroup;
using Isa = cascade::isa::Avx512;
using Columns = cascade::Columns<Isa, kOutputs>;

constexpr size_t kGroupPairs = kGroup / 2;
constexpr size_t kSquareRows = 16;  // rows of x in a register tile
constexpr size_t kMostRows = 64;    // more are faster with a panel of more weights, each turned once

bool takes(const Task& task, const cascade::Chunk& chunk) {
  return task.m <= kMostRows && task.k > 0 && task.k % kGroup == 0 && task.k_block % kGroup == 0 && chunk.block_rows % kOutputs == 0;
}

// 64 columns of 16 rows as they are decoded.
struct Square {
  alignas(64) uint8_t row[kOutputs][2 * kGroup];

  // Into one vector for each pair of columns, `next` numbers apart.
  inline void turn_to(uint16_t* to, size_t next) const {
    for (size_t half = 0; half < 2; ++half) {
      __m512i r[kPairsAVector];
      for (size_t i = 0; i < kOutputs; ++i) r[i] = _mm512_load_si512(row[i] + half * 64);
      turn(r);
      for (size_t i = 0; i < kPairsAVector; ++i) _mm512_store_si512(to + (half * kPairsAVector + i) * next, r[i]);
    }
  }
};

// --- few rows of x: a square is used while the next one is decoded ----------------------------------------------------

template <size_t M>
struct Sums {
  __m512 total[M], sum[M];

  Sums() {
    for (size_t m = 0; m < M; ++m) total[m] = sum[m] = _mm512_setzero_ps();
  }

  inline void add(const uint16_t* turned, const uint16_t* x, size_t stride) {
    const __m512i weights = _mm512_load_si512(turned);
    for (size_t m = 0; m < M; ++m) sum[m] = multiply_add(sum[m], weights, pair_of(x + m * stride));
  }

  // Behind the square at `at`, whether or not it ends a block of inputs.
  inline void end_square(const Task& task, size_t at) {
    const size_t end = at + kGroup;
    if (end % task.k_block != 0 && end != task.k) return;
    for (size_t m = 0; m < M; ++m) {
      total[m] = end <= task.k_block ? sum[m] : _mm512_add_ps(total[m], sum[m]);
      sum[m] = _mm512_setzero_ps();
    }
  }
};

template <size_t M>
void stream(const Task& task, const uint16_t* x, Columns& columns, size_t first, size_t count, const Ahead& ahead,
            size_t group) {
  const size_t stride = stride_of(task.k);
  Square square;
  alignas(64) uint16_t turned[kGroupPairs * kStep];
  Sums<M> sums;
  for (size_t i = 0; i < kOutputs; ++i) {
    ahead.bring(group++);
    columns.group(i, square.row[i]);
  }
  for (size_t at = 0; at + kGroup < task.k; at += kGroup) {
    columns.patch(square.row);
    square.turn_to(turned, kStep);
    for (size_t i = 0; i < kOutputs; ++i) {
      ahead.bring(group++);
      columns.group(i, square.row[i]);
      sums.add(turned + 2 * i * kStep, x + at + 4 * i, stride);
      sums.add(turned + (2 * i + 1) * kStep, x + at + 4 * i + 2, stride);
    }
    sums.end_square(task, at);
  }
  columns.patch(square.row);
  square.turn_to(turned, kStep);
  for (size_t i = 0; i < kGroupPairs; ++i) sums.add(turned + i * kStep, x + task.k - kGroup + 2 * i, stride);
  sums.end_square(task, task.k - kGroup);
  for (size_t m = 0; m < M; ++m) finish(task, m, first, count, sums.total[m]);
}

using Stream = void (*)(const Task&, const uint16_t*, Columns&, size_t, size_t, const Ahead&, size_t);
constexpr Stream kStreams[kStreamRows] = {stream<1>, stream<2>, stream<3>, stream<4>,
                                          stream<5>, stream<6>, stream<7>, stream<8>};

// --- more rows of x: a square is decoded, then used by one tile of them after the other ------------------------------------

template <size_t M>
void add_square(const Task& task, const uint16_t* turned, const uint16_t* x, size_t at, Sums<1>* sums) {
  const size_t stride = stride_of(task.k);
  Sums<M> tile;
  for (size_t m = 0; m < M; ++m) tile.sum[m] = sums[m].sum[0];
  for (size_t i = 0; i < kGroupPairs; ++i) tile.add(turned + i * kStep, x + at + 2 * i, stride);
  for (size_t m = 0; m < M; ++m) {
    sums[m].sum[0] = tile.sum[m];
    sums[m].end_square(task, at);
  }
}

using AddSquare = void (*)(const Task&, const uint16_t*, const uint16_t*, size_t, Sums<1>*);
constexpr AddSquare kAddSquare[kSquareRows] = {
    add_square<1>, add_square<2>,  add_square<3>,  add_square<4>,  add_square<5>,  add_square<6>,  add_square<7>,  add_square<8>,
    add_square<9>, add_square<10>, add_square<11>, add_square<12>, add_square<13>, add_square<14>, add_square<15>, add_square<16>};

void squares(const Task& task, const uint16_t* x, Columns& columns, size_t first, size_t count, const Ahead& ahead,
             size_t group) {
  Square square;
  alignas(64) uint16_t turned[kGroupPairs * kStep];
  Sums<1> sums[kMostRows];
  const size_t tiles = (task.m + kSquareRows - 1) / kSquareRows;  // of nearly equal size
  for (size_t at = 0; at < task.k; at += kGroup) {
    for (size_t i = 0; i < kOutputs; ++i) {
      ahead.bring(group++);
      columns.group(i, square.row[i]);
    }
    columns.patch(square.row);
    square.turn_to(turned, kStep);
    for (size_t t = 0; t < tiles; ++t) {
      const size_t row = t * task.m / tiles, next = (t + 1) * task.m / tiles;
      kAddSquare[next - row - 1](task, turned, x + row * stride_of(task.k), at, sums + row);
    }
  }
  for (size_t m = 0; m < task.m; ++m) finish(task, m, first, count, sums[m].total[0]);
}

bool multiply(const Task& task, const void* packed, const cascade::Block& block, cascade::Scratch* scratch,
              const uint8_t* sm, size_t first, const Ahead& ahead) {
  const Stream compute = task.m <= kStreamRows ? kStreams[task.m - 1] : squares;
  Columns columns(block, scratch);
  for (size_t done = 0; done < block.rows; done += kOutputs) {
    const size_t some = smaller(block.rows - done, kOutputs);
    columns.begin(some, sm + done * task.k);
    compute(task, static_cast<const uint16_t*>(packed), columns, first + done, some, ahead, done * (task.k / kGroup));
  }
  return columns.done();
}

constexpr BlockKernel kBlocks = {takes, packed_bytes, pack, multiply};

}  // namespace

const BlockKernel* pairs_blocks_avx512() { return &kBlocks; }

}  // namespace zipmoe::linear
