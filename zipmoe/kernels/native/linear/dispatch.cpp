// The C interface of linears: chooses the kernel, and distributes panels over threads.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "cascade/cascade.h"
#include "cascade/block.h"
#include "linear/linear.h"
#include "linear/backend.h"
#include "pool/thread_memory.h"
#include "pool/worker_pool.h"

namespace zipmoe::linear {
namespace {

enum Result { kDone = 0, kUnknown = -1, kCorrupt = -2, kNoMemory = -3 };

constexpr size_t kMostPackedBytes = 4 << 20;  // of inputs; more rows are computed in several rounds
constexpr size_t kFewestRows = 64;            // of a round, however long the rows are
constexpr size_t kMacsAThread = 1 << 18;      // less is not worth waking a thread for
constexpr size_t kMostTogether = 32;          // chunks of a matrix in one parallel loop
constexpr size_t kTurns = 8;                  // of each thread, so that fast threads can take over turns of a slow one

thread_local ThreadMemory packed_memory, scratch_memory;

struct Job {
  const Task& task;
  const Backend& backend;
  const void* packed;
  std::atomic<int> result{kDone};

  void fail(Result result_of_turn) { result.store(result_of_turn, std::memory_order_relaxed); }
};

// Rows of weights that a thread computes in one turn. A turn has whole panels.
size_t rows_a_turn(const Task& task, const Kernel& kernel, size_t rows, size_t threads) {
  const size_t panel = kernel.panel_rows(task.m, task.k);
  const size_t panels = (rows + panel - 1) / panel;
  const size_t turns = threads == 1 ? 1 : threads * kTurns;
  return (panels + turns - 1) / turns * panel;
}

// --- weights that are bf16 -------------------------------------------------------------------------------------------

// Outputs first .. first + rows - 1.
struct Bf16 {
  const uint16_t* weight;
  size_t first, rows;

  size_t packed_bytes(const Task& task, const Backend& backend) const {
    return backend.kernel->packed_bytes(task.m, task.k);
  }
  void pack(const Task& task, const Backend& backend, void* packed) const { backend.kernel->pack(task, packed); }
  int run(const Task& task, const Backend& backend, const void* packed, size_t threads) const;
};

struct Bf16Job : Job {
  const Bf16& weights;
  size_t rows_a_turn;
};

void bf16_turn(void* context, size_t turn) {
  Bf16Job& job = *static_cast<Bf16Job*>(context);
  const Task& task = job.task;
  const size_t first = turn * job.rows_a_turn, left = job.weights.rows - first;
  const size_t rows = left < job.rows_a_turn ? left : job.rows_a_turn;
  const size_t bytes = job.backend.kernel->scratch_bytes(task.m, task.k);
  void* scratch = scratch_memory.get(bytes);
  if (scratch == nullptr && bytes > 0) return job.fail(kNoMemory);
  job.backend.kernel->multiply(task, job.packed, job.weights.weight + first * task.k, job.weights.first + first, rows,
                               scratch);
}

int Bf16::run(const Task& task, const Backend& backend, const void* packed, size_t threads) const {
  Bf16Job job{{task, backend, packed}, *this, rows_a_turn(task, *backend.kernel, rows, threads)};
  run_on_pool(threads, (rows + job.rows_a_turn - 1) / job.rows_a_turn, bf16_turn, &job);
  return job.result;
}

// --- weights that are a cascade --------------------------------------------------------------------------------------

// Rows of a matrix in one chunk, and the turns in which they are computed.
struct Rows {
  cascade::Chunk chunk;
  const uint8_t* sm;
  size_t first;  // output of the first row
  uint32_t blocks_a_turn;
  size_t first_turn;

  size_t turns() const { return (chunk.block_count + blocks_a_turn - 1) / blocks_a_turn; }
};

struct CascadeJob : Job {
  const Rows* rows;
  size_t count;
  size_t k;
  size_t threads;

  const Rows& of(size_t turn) const {
    const Rows* found = rows;
    while (found + 1 < rows + count && found[1].first_turn <= turn) ++found;
    return *found;
  }

  // What a turn begins with, to be prefetched.
  Ahead ahead_of(size_t turn) const {
    const Rows& next = of(turn);
    return next_of(next, static_cast<uint32_t>((turn - next.first_turn) * next.blocks_a_turn));
  }

  Ahead next_of(const Rows& part, uint32_t index) const {
    cascade::Block next;
    if (index >= part.chunk.block_count || !open_block(part.chunk, index, &next)) return {};
    const size_t weights = size_t{next.rows} * k;
    const size_t payload_step = next.payload_bytes / (weights / cascade::kGroup + 1) + 1;
    return {part.sm + size_t{next.first_row} * k, next.tables, cascade::kGroup, payload_step};
  }
};

// Computes one block. The next turn of the thread is about `threads` blocks further, so that block is prefetched.
void block_turn(void* context, size_t turn) {
  CascadeJob& job = *static_cast<CascadeJob*>(context);
  cascade::Scratch* scratch = static_cast<cascade::Scratch*>(scratch_memory.get(sizeof(cascade::Scratch)));
  if (scratch == nullptr) return job.fail(kNoMemory);
  const Rows& part = job.of(turn);
  cascade::Block block;
  if (!open_block(part.chunk, static_cast<uint32_t>(turn - part.first_turn), &block)) return job.fail(kCorrupt);
  const uint8_t* sm = part.sm + size_t{block.first_row} * job.k;
  const Ahead ahead = job.ahead_of(turn + job.threads);
  if (!job.backend.blocks->multiply(job.task, job.packed, block, scratch, sm, part.first + block.first_row, ahead)) {
    job.fail(kCorrupt);
  }
}

// Collects recovered rows and multiplies a panel at a time.
struct Panel {
  const CascadeJob& job;
  size_t most;      // rows of a panel
  size_t first;     // output of its first row
  size_t rows;      // rows in the panel, the row that is being recovered included
  uint16_t* weight;
  void* scratch;
  Ahead ahead;
  size_t group = 0;  // next group of the block to prefetch for

  void multiply() {
    job.backend.kernel->multiply(job.task, job.packed, weight, first, rows, scratch);
    first += rows;
    rows = 0;
  }

  static uint16_t* next(void* context) {
    Panel& panel = *static_cast<Panel*>(context);
    if (panel.rows == panel.most) panel.multiply();
    const size_t groups = panel.job.task.k / cascade::kGroup;
    for (size_t i = 0; i < groups; ++i) panel.ahead.bring(panel.group++);
    return panel.weight + panel.rows++ * panel.job.task.k;
  }
};

void cascade_turn(void* context, size_t turn) {
  CascadeJob& job = *static_cast<CascadeJob*>(context);
  const Task& task = job.task;
  const Kernel& kernel = *job.backend.kernel;
  const size_t panel_rows = kernel.panel_rows(task.m, task.k);
  const size_t kernel_bytes = (kernel.scratch_bytes(task.m, task.k) + 63) / 64 * 64;
  const size_t panel_bytes = (panel_rows * task.k * sizeof(uint16_t) + 63) / 64 * 64;
  uint8_t* memory = static_cast<uint8_t*>(scratch_memory.get(kernel_bytes + panel_bytes + sizeof(cascade::Scratch)));
  if (memory == nullptr) return job.fail(kNoMemory);
  uint16_t* weight = reinterpret_cast<uint16_t*>(memory + kernel_bytes);
  cascade::Scratch* scratch = reinterpret_cast<cascade::Scratch*>(memory + kernel_bytes + panel_bytes);

  const Rows& part = job.of(turn);
  const uint32_t begin = static_cast<uint32_t>(turn - part.first_turn) * part.blocks_a_turn;
  const size_t first_row = size_t{begin} * part.chunk.block_rows;
  Panel panel = {job, panel_rows, part.first + first_row, 0, weight, memory, {}};
  for (uint32_t index = begin; index < begin + part.blocks_a_turn && index < part.chunk.block_count; ++index) {
    cascade::Block block;
    if (!open_block(part.chunk, index, &block)) return job.fail(kCorrupt);
    const uint8_t* sm = part.sm + size_t{block.first_row} * task.k;
    const bool last = index + 1 == begin + part.blocks_a_turn;
    panel.ahead = last ? job.ahead_of(turn + job.threads) : job.next_of(part, index + 1);
    panel.group = 0;
    if (!job.backend.cascade_rows(block, scratch, sm, {Panel::next, &panel})) return job.fail(kCorrupt);
  }
  panel.multiply();
}

// Consecutive rows of a matrix that are computed in the same way, block by block or panel by panel.
struct Cascade {
  Rows* parts;
  size_t count, rows;
  bool blocks;

  size_t packed_bytes(const Task& task, const Backend& backend) const {
    return (blocks ? backend.blocks->packed_bytes : backend.kernel->packed_bytes)(task.m, task.k);
  }

  void pack(const Task& task, const Backend& backend, void* packed) const {
    (blocks ? backend.blocks->pack : backend.kernel->pack)(task, packed);
  }

  int run(const Task& task, const Backend& backend, const void* packed, size_t threads) const {
    const size_t panel_rows = backend.kernel->panel_rows(task.m, task.k);
    size_t turns = 0;
    for (Rows* part = parts; part < parts + count; ++part) {
      part->blocks_a_turn = blocks ? 1 : (panel_rows + part->chunk.block_rows - 1) / part->chunk.block_rows;
      part->first_turn = turns;
      turns += part->turns();
    }
    CascadeJob job{{task, backend, packed}, parts, count, task.k, threads};
    run_on_pool(threads, turns, blocks ? block_turn : cascade_turn, &job);
    return job.result;
  }
};

// ---------------------------------------------------------------------------------------------------------------------

template <class Weights>
int run(const Task& all, const Backend& backend, const Weights& weights, size_t threads) {
  if (all.m == 0 || weights.rows == 0) return kDone;
  // Takes some rows of x at a time, so that these rows stay in the cache. Their number changes the speed, not the bits.
  size_t most = kMostPackedBytes / (all.k * sizeof(float) + 1);
  if (most < kFewestRows) most = kFewestRows;
  const size_t goes = (all.m + most - 1) / most;
  for (size_t go = 0; go < goes; ++go) {
    const size_t begin = go * all.m / goes, end = (go + 1) * all.m / goes;
    Task task = all;
    task.x += begin * all.k;
    task.out += begin * all.n;
    task.m = end - begin;
    const size_t bytes = weights.packed_bytes(task, backend);
    void* packed = packed_memory.get(bytes);
    if (packed == nullptr && bytes > 0) return kNoMemory;
    weights.pack(task, backend, packed);
    const size_t worth = 1 + task.m * weights.rows * task.k / kMacsAThread;
    const int result = weights.run(task, backend, packed, threads < worth ? threads : worth);
    if (result != kDone) return result;
  }
  return kDone;
}

// Computes rows whose chunk has longer rows than the matrix. Such a matrix is small: memory for its weights costs little.
int multiply_narrow(const Task& task, int backend, const Backend& found, const zipmoe_part& part, size_t first,
                    size_t threads) {
  uint16_t* bf16 = static_cast<uint16_t*>(malloc(part.rows * task.k * sizeof(uint16_t) + 1));
  if (bf16 == nullptr) return kNoMemory;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(bf16);
  int result = zipmoe_cascade_recover(backend, part.chunk, part.chunk_bytes, part.sm, bytes, part.rows * task.k);
  if (result == kDone) result = run(task, found, Bf16{bf16, first, part.rows}, threads);
  free(bf16);
  return result;
}

}  // namespace
}  // namespace zipmoe::linear

int zipmoe_linear_is_native(int backend, int order) { return zipmoe::linear::backend_of(backend, order).native; }

int zipmoe_linear(int backend, int order, const uint16_t* x, const uint16_t* weight, const uint16_t* bias,
                  uint16_t* out, size_t m, size_t n, size_t k, size_t k_block, size_t parts,
                  size_t threads) {
  using namespace zipmoe::linear;
  const Backend found = backend_of(backend, order);
  if (found.kernel == nullptr || !fits(order, k_block, parts)) return kUnknown;
  const Task task = {x, bias, out, m, n, k, k_block, part_of(k, k_block, parts), false};
  return run(task, found, Bf16{weight, 0, n}, threads > 0 ? threads : 1);
}

int zipmoe_linear_cascade(int backend, int order, const uint16_t* x, const zipmoe_part* weights, size_t count,
                          const uint16_t* bias, uint16_t* out, size_t m, size_t n, size_t k, size_t k_block,
                          size_t parts, size_t first, size_t threads) {
  using namespace zipmoe::linear;
  const Backend found = backend_of(backend, order);
  if (found.kernel == nullptr || !fits(order, k_block, parts)) return kUnknown;
  const Task task = {x, bias, out, m, n, k, k_block, part_of(k, k_block, parts), true};
  if (threads == 0) threads = 1;
  Rows together[kMostTogether];
  Cascade some = {together, 0, 0, false};
  const auto compute = [&] {
    const int result = some.count == 0 ? int{kDone} : run(task, found, some, threads);
    some.count = some.rows = 0;
    return result;
  };
  for (const zipmoe_part* part = weights; part < weights + count; first += part->rows, ++part) {
    zipmoe::cascade::Chunk chunk;
    if (!zipmoe::cascade::open_chunk(part->chunk, part->chunk_bytes, part->rows * k, &chunk)) return kCorrupt;
    if (part->rows == 0) continue;
    const bool narrow = chunk.cols != k;
    const bool blocks = !narrow && found.blocks != nullptr && found.blocks->takes(task, chunk);
    if (narrow || blocks != some.blocks || some.count == kMostTogether) {
      if (const int result = compute()) return result;
    }
    if (narrow) {
      if (const int result = multiply_narrow(task, backend, found, *part, first, threads)) return result;
      continue;
    }
    some.blocks = blocks;
    some.rows += part->rows;
    together[some.count++] = {chunk, part->sm, first, 1, 0};
  }
  return compute();
}
