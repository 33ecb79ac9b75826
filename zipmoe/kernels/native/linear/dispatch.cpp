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

struct CascadeJob : Job {
  const cascade::Chunk& chunk;
  const uint8_t* sm;
  size_t first;
  uint32_t blocks_a_turn;
  size_t threads;
};

Ahead next_of(const CascadeJob& job, uint32_t index) {
  cascade::Block next;
  if (index >= job.chunk.block_count || !open_block(job.chunk, index, &next)) return {};
  const size_t weights = size_t{next.rows} * job.task.k;
  const size_t payload_step = next.payload_bytes / (weights / cascade::kGroup + 1) + 1;
  return {job.sm + size_t{next.first_row} * job.task.k, next.tables, cascade::kGroup, payload_step};
}

// Computes one block. The next turn of the thread is about `threads` blocks further, so that block is prefetched.
void block_turn(void* context, size_t turn) {
  CascadeJob& job = *static_cast<CascadeJob*>(context);
  cascade::Scratch* scratch = static_cast<cascade::Scratch*>(scratch_memory.get(sizeof(cascade::Scratch)));
  if (scratch == nullptr) return job.fail(kNoMemory);
  const uint32_t index = static_cast<uint32_t>(turn);
  cascade::Block block;
  if (!open_block(job.chunk, index, &block)) return job.fail(kCorrupt);
  const uint8_t* sm = job.sm + size_t{block.first_row} * job.task.k;
  const Ahead ahead = next_of(job, index + static_cast<uint32_t>(job.threads));
  if (!job.backend.blocks->multiply(job.task, job.packed, block, scratch, sm, job.first + block.first_row, ahead)) {
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

  const uint32_t begin = static_cast<uint32_t>(turn) * job.blocks_a_turn;
  const size_t first_row = size_t{begin} * job.chunk.block_rows;
  Panel panel = {job, panel_rows, job.first + first_row, 0, weight, memory, {}};
  for (uint32_t index = begin; index < begin + job.blocks_a_turn && index < job.chunk.block_count; ++index) {
    cascade::Block block;
    if (!open_block(job.chunk, index, &block)) return job.fail(kCorrupt);
    const uint8_t* sm = job.sm + size_t{block.first_row} * task.k;
    const bool last = index + 1 == begin + job.blocks_a_turn;
    panel.ahead = next_of(job, index + 1 + (last ? static_cast<uint32_t>(job.threads - 1) * job.blocks_a_turn : 0));
    panel.group = 0;
    if (!job.backend.cascade_rows(block, scratch, sm, {Panel::next, &panel})) return job.fail(kCorrupt);
  }
  panel.multiply();
}

struct Cascade {
  cascade::Chunk chunk;
  const uint8_t* sm;
  size_t first, rows;

  bool takes_blocks(const Task& task, const Backend& backend) const {
    return backend.blocks != nullptr && backend.blocks->takes(task, chunk);
  }

  size_t packed_bytes(const Task& task, const Backend& backend) const {
    return (takes_blocks(task, backend) ? backend.blocks->packed_bytes : backend.kernel->packed_bytes)(task.m, task.k);
  }

  void pack(const Task& task, const Backend& backend, void* packed) const {
    (takes_blocks(task, backend) ? backend.blocks->pack : backend.kernel->pack)(task, packed);
  }

  int run(const Task& task, const Backend& backend, const void* packed, size_t threads) const {
    if (takes_blocks(task, backend)) {
      CascadeJob job{{task, backend, packed}, chunk, sm, first, 1, threads};
      run_on_pool(threads, chunk.block_count, block_turn, &job);
      return job.result;
    }
    const size_t panel_rows = backend.kernel->panel_rows(task.m, task.k);
    const uint32_t blocks = static_cast<uint32_t>((panel_rows + chunk.block_rows - 1) / chunk.block_rows);
    CascadeJob job{{task, backend, packed}, chunk, sm, first, blocks, threads};
    run_on_pool(threads, (chunk.block_count + blocks - 1) / blocks, cascade_turn, &job);
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

int zipmoe_linear_cascade(int backend, int order, const uint16_t* x, const uint8_t* chunk, size_t chunk_bytes,
                          const uint8_t* sm, const uint16_t* bias, uint16_t* out, size_t m, size_t n, size_t k,
                          size_t k_block, size_t parts, size_t first, size_t rows, size_t threads) {
  using namespace zipmoe::linear;
  const Backend found = backend_of(backend, order);
  if (found.kernel == nullptr || !fits(order, k_block, parts)) return kUnknown;
  const Task task = {x, bias, out, m, n, k, k_block, part_of(k, k_block, parts), true};
  if (threads == 0) threads = 1;
  Cascade weights = {{}, sm, first, rows};
  if (!zipmoe::cascade::open_chunk(chunk, chunk_bytes, rows * k, &weights.chunk)) return kCorrupt;
  if (weights.chunk.cols == k) return run(task, found, weights, threads);
  // The chunk of a narrow matrix may have longer rows than the matrix. Such a matrix is small: memory for its weights
  // costs little.
  uint16_t* bf16 = static_cast<uint16_t*>(malloc(rows * k * sizeof(uint16_t) + 1));
  if (bf16 == nullptr) return kNoMemory;
  int result = zipmoe_cascade_recover(backend, chunk, chunk_bytes, sm, reinterpret_cast<uint8_t*>(bf16), rows * k);
  if (result == kDone) result = run(task, found, Bf16{bf16, first, rows}, threads);
  free(bf16);
  return result;
}
