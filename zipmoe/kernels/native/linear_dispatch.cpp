// The linear's C interface: which kernel computes, and how its panels are shared out over threads.
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "linear.h"
#include "worker_pool.h"

namespace zipmoe::linear {
namespace {

constexpr size_t kMostPackedBytes = 4 << 20;  // of inputs; more rows are computed in several goes
constexpr size_t kFewestRows = 64;            // of a go, however long they are
constexpr size_t kMacsAThread = 1 << 18;      // less is not worth waking a thread for
constexpr size_t kTurns = 8;                  // in which a thread takes its share, so that a slow one can be helped out

// Memory that a thread keeps for its next calls.
class Buffer {
 public:
  ~Buffer() { free(memory_); }

  void* get(size_t bytes) {
    if (bytes > bytes_) {
      free(memory_);
      memory_ = aligned_alloc(64, (bytes + 63) / 64 * 64);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

thread_local Buffer packed_memory, scratch_memory;

const Kernel* kernel_of(int backend, int order, bool* native) {
  const char* name = zipmoe_backend_name(backend);
  if (name == nullptr || order < 0 || order >= kOrders) return nullptr;
  *native = true;
#if defined(__x86_64__)
  const bool avx512 = strcmp(name, "avx512") == 0;
  if (order == kPairs && avx512 && __builtin_cpu_supports("avx512bf16")) return pairs_avx512();
  if (order == kLanes && avx512) return lanes_avx512();
  if (order == kLanes && strcmp(name, "avx2") == 0 && __builtin_cpu_supports("fma")) return lanes_avx2();
#elif defined(__aarch64__)
  if (order == kLanes && strcmp(name, "neon") == 0) return lanes_neon();
#endif
  *native = false;
  return kernel_scalar(static_cast<Order>(order));
}

struct Job {
  const Task* task;
  const Kernel* kernel;
  const void* packed;
  const uint16_t* weight;
  size_t rows_a_turn;
  std::atomic<bool> failed{false};
};

void run_turn(void* context, size_t turn) {
  Job& job = *static_cast<Job*>(context);
  const Task& task = *job.task;
  const size_t first = turn * job.rows_a_turn;
  const size_t rows = task.n - first < job.rows_a_turn ? task.n - first : job.rows_a_turn;
  const size_t bytes = job.kernel->scratch_bytes(task.m, task.k);
  void* scratch = scratch_memory.get(bytes);
  if (scratch == nullptr && bytes > 0) {
    job.failed.store(true, std::memory_order_relaxed);
    return;
  }
  job.kernel->multiply(task, job.packed, job.weight + first * task.k, first, rows, scratch);
}

// Rows of weights that are computed at a time: whole panels, several turns for each thread.
size_t rows_a_turn(const Task& task, const Kernel& kernel, size_t threads) {
  const size_t panel = kernel.panel_rows(task.m, task.k);
  const size_t panels = (task.n + panel - 1) / panel;
  const size_t turns = threads == 1 ? 1 : threads * kTurns;
  return (panels + turns - 1) / turns * panel;
}

bool run(Task task, const Kernel& kernel, const uint16_t* weight, size_t threads) {
  const size_t bytes = kernel.packed_bytes(task.m, task.k);
  void* packed = packed_memory.get(bytes);
  if (packed == nullptr && bytes > 0) return false;
  kernel.pack(task, packed);
  const size_t worth = 1 + task.m * task.n * task.k / kMacsAThread;
  if (threads > worth) threads = worth;
  Job job{&task, &kernel, packed, weight, rows_a_turn(task, kernel, threads)};
  run_on_pool(threads, (task.n + job.rows_a_turn - 1) / job.rows_a_turn, run_turn, &job);
  return !job.failed.load(std::memory_order_relaxed);
}

}  // namespace
}  // namespace zipmoe::linear

int zipmoe_linear_is_native(int backend, int order) {
  bool native = false;
  return zipmoe::linear::kernel_of(backend, order, &native) != nullptr && native;
}

int zipmoe_linear(int backend, int order, const uint16_t* x, const uint16_t* weight, const uint16_t* bias,
                  uint16_t* out, size_t m, size_t n, size_t k, size_t k_block, size_t threads) {
  using namespace zipmoe::linear;
  bool native;
  const Kernel* kernel = kernel_of(backend, order, &native);
  if (kernel == nullptr || (order == kPairs && (k_block == 0 || k_block % 32 != 0))) return -1;
  if (m == 0 || n == 0) return 0;
  // Rows at a time, so that inputs stay in cache; their number matters to nothing but speed.
  size_t most = k == 0 ? m : kMostPackedBytes / (k * sizeof(float));
  if (most < kFewestRows) most = kFewestRows;
  const size_t goes = (m + most - 1) / most;
  for (size_t go = 0; go < goes; ++go) {
    const size_t begin = go * m / goes, end = (go + 1) * m / goes;
    const Task task = {x + begin * k, bias, out + begin * n, end - begin, n, k, k_block};
    if (!run(task, *kernel, weight, threads == 0 ? 1 : threads)) return -3;
  }
  return 0;
}
