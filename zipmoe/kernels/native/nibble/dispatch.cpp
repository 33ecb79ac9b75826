// The C interface of nibble form: chooses the kernel, checks sizes, and distributes tiles over threads.
#include <string.h>

#include <atomic>

#include "nibble/nibble.h"
#include "pool/thread_memory.h"
#include "pool/worker_pool.h"

namespace zipmoe::nibble {

void recover_tile(const Kernel& kernel, const Tile& tile, size_t k, uint16_t* const* rows) {
  const size_t first = tile.coded * kGroupInputs, nbytes = (k - first) * sizeof(uint16_t);
  for (size_t pass = 0; pass < kPasses; ++pass) {
    kernel.recover(tile, pass, rows);
    const uint8_t* listed = tile.listed[pass];
    for (size_t i = 0; i < tile.exceptions[pass]; ++i, listed += kExceptionBytes) {
      const Exception exception(listed);
      uint16_t* row = rows[output_of(exception.place % kGroup)];
      uint16_t& weight = row[exception.place / kGroup * kGroupInputs + input_of(exception.place % kGroup, pass)];
      weight = static_cast<uint16_t>((weight & 0xff) | exception.high << 8);
    }
  }
  for (size_t output = 0; output < kOutputs && nbytes > 0; ++output) {
    memcpy(rows[output] + first, tile.rest + output * nbytes, nbytes);
  }
}

namespace {

constexpr size_t kMacsAThread = 1 << 18;  // less is not worth waking a thread for
constexpr size_t kTurns = 8;              // of each thread, so that fast threads can take over turns of a slow one
constexpr size_t kMostRows = 32;          // of x that are computed together, so that they stay in the cache

thread_local ThreadMemory packed_memory, scratch_memory;

const Kernel* kernel_of(int backend) {
  const char* name = zipmoe_backend_name(backend);
  if (name == nullptr) return nullptr;
#if defined(__x86_64__)
  const bool has_avx2 = strcmp(name, "avx512") == 0 || strcmp(name, "avx2") == 0;
  if (has_avx2 && __builtin_cpu_supports("fma")) return kernel_avx2();
#elif defined(__aarch64__)
  if (strcmp(name, "neon") == 0) return kernel_neon();
#endif
  return kernel_scalar();
}

// Tiles in turns, each computed by one thread.
struct Job {
  const linear::Task& task;
  const Kernel& kernel;
  const void* packed;
  const Matrix& matrix;
  size_t tiles_a_turn;
  std::atomic<int> result{kDone};

  size_t turns() const { return (matrix.shape.tiles() + tiles_a_turn - 1) / tiles_a_turn; }
};

void turn(void* context, size_t index) {
  Job& job = *static_cast<Job*>(context);
  const size_t bytes = job.kernel.scratch_bytes(job.task.m, job.task.k);
  void* scratch = scratch_memory.get(bytes + 1);
  if (scratch == nullptr) return job.result.store(kNoMemory, std::memory_order_relaxed);
  const size_t first = index * job.tiles_a_turn, left = job.matrix.shape.tiles() - first;
  const size_t count = left < job.tiles_a_turn ? left : job.tiles_a_turn;
  if (!job.kernel.multiply(job.task, job.packed, job.matrix, first, count, scratch)) {
    job.result.store(kCorrupt, std::memory_order_relaxed);
  }
}

int run(const linear::Task& all, const Kernel& kernel, const Matrix& matrix, size_t threads) {
  const size_t goes = (all.m + kMostRows - 1) / kMostRows, tiles = matrix.shape.tiles();
  for (size_t go = 0; go < goes; ++go) {
    const size_t begin = go * all.m / goes, end = (go + 1) * all.m / goes;
    linear::Task task = all;
    task.x += begin * all.k;
    task.out += begin * all.n;
    task.m = end - begin;
    void* packed = packed_memory.get(kernel.packed_bytes(task.m, task.k) + 1);
    if (packed == nullptr) return kNoMemory;
    kernel.pack(task, packed);
    const size_t worth = 1 + task.m * task.n * task.k / kMacsAThread, used = threads < worth ? threads : worth;
    Job job = {task, kernel, packed, matrix, used == 1 ? tiles : (tiles - 1) / (used * kTurns) + 1};
    run_on_pool(used, job.turns(), turn, &job);
    if (job.result != kDone) return job.result;
  }
  return kDone;
}

}  // namespace
}  // namespace zipmoe::nibble

using namespace zipmoe::nibble;

int zipmoe_nibble_is_supported(int backend) { return kernel_of(backend) != nullptr; }

size_t zipmoe_nibble_bound(size_t n, size_t k) { return Shape{n, k}.bound(); }

int zipmoe_nibble_from_cascade(int backend, const zipmoe_part* parts, size_t count, size_t n, size_t k, uint8_t* out,
                               size_t room, size_t* used) {
  const Kernel* kernel = kernel_of(backend);
  const Shape shape = {n, k};
  if (kernel == nullptr || shape.bound() == 0) return kUnknown;
  return encode_parts(backend, *kernel, parts, count, shape, {out, room, used});
}

int zipmoe_nibble_from_bf16(int backend, const uint16_t* weight, size_t n, size_t k, uint8_t* out, size_t room,
                            size_t* used) {
  const Kernel* kernel = kernel_of(backend);
  const Shape shape = {n, k};
  if (kernel == nullptr || shape.bound() == 0) return kUnknown;
  return encode_bf16(*kernel, weight, shape, {out, room, used});
}

int zipmoe_nibble_to_bf16(int backend, const uint8_t* form, size_t form_bytes, size_t n, size_t k, uint16_t* weight) {
  const Kernel* kernel = kernel_of(backend);
  if (kernel == nullptr) return kUnknown;
  Matrix matrix;
  if (!open_matrix(form, form_bytes, {n, k}, &matrix)) return kCorrupt;
  uint16_t* padding = nullptr;
  if (n % kOutputs != 0) {
    padding = static_cast<uint16_t*>(scratch_memory.get(k * sizeof(uint16_t) + 1));
    if (padding == nullptr) return kNoMemory;
  }
  for (size_t index = 0; index < matrix.shape.tiles(); ++index, weight += kOutputs * k) {
    Tile tile;
    if (!open_tile(matrix, index, &tile)) return kCorrupt;
    uint16_t* const rows[kOutputs] = {weight, index * kOutputs + 1 < n ? weight + k : padding};
    recover_tile(*kernel, tile, k, rows);
  }
  return kDone;
}

int zipmoe_nibble_linear(int backend, const uint16_t* x, const uint8_t* form, size_t form_bytes, const uint16_t* bias,
                         uint16_t* out, size_t m, size_t n, size_t k, size_t, size_t, size_t threads) {
  const Kernel* kernel = kernel_of(backend);
  if (kernel == nullptr) return kUnknown;
  Matrix matrix;
  if (!open_matrix(form, form_bytes, {n, k}, &matrix)) return kCorrupt;
  if (n == 0) return kDone;
  return run({x, bias, out, m, n, k, 0, SIZE_MAX, false}, *kernel, matrix, threads > 0 ? threads : 1);
}
