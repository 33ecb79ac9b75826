// The C interface of attention: chooses the kernels, and distributes heads over threads.
#include <stdlib.h>

#include <atomic>

#include "attention/math.h"
#include "linear/backend.h"
#include "pool/thread_memory.h"
#include "pool/worker_pool.h"

namespace zipmoe::attention {
namespace {

enum Result { kDone = 0, kUnknown = -1, kNoMemory = -3 };

constexpr size_t kMacsAThread = 1 << 17;  // less is not worth waking a thread for

thread_local ThreadMemory memory;

struct Found {
  const Kernel* kernel = nullptr;
  bool native = false;
};

Found kernel_of(int index, int order) {
  const char* name = zipmoe_backend_name(index);
  if (name == nullptr || order < 0 || order >= kValueOrders) return {};
  Found found;
#if defined(__x86_64__)
  const bool avx512 = strcmp(name, "avx512") == 0;
  if (order == kPairs && avx512 && __builtin_cpu_supports("avx512bf16")) found.kernel = pairs_avx512();
  const bool fma = __builtin_cpu_supports("fma");
  if (order == kFours && fma && (avx512 || strcmp(name, "avx2") == 0)) found.kernel = fours_avx2();
#elif defined(__aarch64__)
  if (order == kFours && strcmp(name, "neon") == 0) found.kernel = fours_neon();
#endif
  found.native = found.kernel != nullptr;
  if (!found.native) found.kernel = kernel_scalar(static_cast<ValueOrder>(order));
  return found;
}

// Common part of both products. A turn computes one head of keys and values of one request.
struct Job {
  Sizes sizes;
  const Entry* entries;
  const Run* runs;
  std::atomic<int> result{kDone};

  size_t first(size_t request) const { return static_cast<size_t>(entries[request].token); }
  size_t tokens(size_t request) const { return first(request + 1) - first(request); }
  // First element of the rows of a head's query heads, in an array with `numbers` elements per query head.
  size_t query(size_t request, size_t head, size_t numbers) const {
    return (request * sizes.heads + head) * sizes.groups * numbers;
  }
  // The same in an array with one element per token.
  size_t row(size_t request, size_t head) const {
    return (first(request) * sizes.heads + head * tokens(request)) * sizes.groups;
  }

  int share_out(size_t threads, void (*turn)(void*, size_t)) {
    const size_t macs = first(sizes.requests) * sizes.heads * sizes.groups * sizes.numbers;
    const size_t worth = 1 + macs / kMacsAThread;
    run_on_pool(threads < worth ? threads : worth, sizes.requests * sizes.heads, turn, this);
    return result;
  }
};

struct Scores : Job {
  const linear::Kernel* kernel;
  const uint16_t* queries;
  const uint16_t* keys;
  float* out;
  float scaling;
};

size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

void scores_turn(void* context, size_t index) {
  Scores& job = *static_cast<Scores*>(context);
  const Sizes& sizes = job.sizes;
  const size_t request = index / sizes.heads, head = index % sizes.heads, tokens = job.tokens(request);
  linear::Task task = {};
  task.x = job.queries + job.query(request, head, sizes.numbers);
  task.m = sizes.groups;
  task.n = tokens;
  task.k = sizes.numbers;
  task.k_block = task.k_part = (sizes.numbers + 31) / 32 * 32;
  const size_t packed_bytes = whole_lines(job.kernel->packed_bytes(task.m, task.k));
  const size_t scratch_bytes = whole_lines(job.kernel->scratch_bytes(task.m, task.k));
  const size_t count = sizes.groups * tokens;
  uint8_t* packed = static_cast<uint8_t*>(memory.get(packed_bytes + scratch_bytes + count * sizeof(uint16_t)));
  if (packed == nullptr) return job.result.store(kNoMemory, std::memory_order_relaxed);
  task.out = reinterpret_cast<uint16_t*>(packed + packed_bytes + scratch_bytes);
  job.kernel->pack(task, packed);
  const uint16_t* keys = job.keys + head * sizes.slots * sizes.numbers;
  size_t first = 0;
  for (const Run* run = job.runs + job.entries[request].run; run < job.runs + job.entries[request + 1].run; ++run) {
    const size_t rows = static_cast<size_t>(run->tokens);
    const uint16_t* at = keys + static_cast<size_t>(run->slot) * sizes.numbers;
    job.kernel->multiply(task, packed, at, first, rows, packed + packed_bytes);
    first += rows;
  }
  float* out = job.out + job.row(request, head);
  for (size_t i = 0; i < count; ++i) out[i] = widen(round_to_bf16(widen(task.out[i]) * job.scaling));
}

struct Outputs : Job {
  const Kernel* kernel;
  const float* weights;
  const uint16_t* values;
  uint16_t* out;
  size_t block;
};

void values_turn(void* context, size_t index) {
  Outputs& job = *static_cast<Outputs*>(context);
  const Sizes& sizes = job.sizes;
  const size_t request = index / sizes.heads, head = index % sizes.heads;
  Values task;
  task.weights = job.weights + job.row(request, head);
  task.values = job.values + head * sizes.slots * sizes.numbers;
  task.out = job.out + job.query(request, head, sizes.numbers);
  task.runs = job.runs + job.entries[request].run;
  task.tokens = job.tokens(request);
  task.groups = sizes.groups;
  task.numbers = sizes.numbers;
  task.block = job.block;
  const size_t bytes = job.kernel->scratch_bytes(task);
  void* scratch = memory.get(bytes);
  if (scratch == nullptr && bytes > 0) return job.result.store(kNoMemory, std::memory_order_relaxed);
  job.kernel->sum(task, scratch);
}

}  // namespace
}  // namespace zipmoe::attention

int zipmoe_attention_is_native(int backend, int order) { return zipmoe::attention::kernel_of(backend, order).native; }

int zipmoe_attention_scores(int backend, int order, const uint16_t* queries, const uint16_t* keys,
                            const int64_t* entries, const int64_t* runs, float* scores, size_t requests, size_t heads,
                            size_t groups, size_t numbers, size_t slots, uint32_t scaling, size_t threads) {
  using namespace zipmoe::attention;
  const zipmoe::linear::Backend found = zipmoe::linear::backend_of(backend, order);
  if (found.kernel == nullptr) return kUnknown;
  Scores job;
  job.sizes = {requests, heads, groups, numbers, slots};
  job.entries = reinterpret_cast<const Entry*>(entries);
  job.runs = reinterpret_cast<const Run*>(runs);
  job.kernel = found.kernel;
  job.queries = queries;
  job.keys = keys;
  job.out = scores;
  memcpy(&job.scaling, &scaling, sizeof scaling);
  return job.share_out(threads > 0 ? threads : 1, scores_turn);
}

int zipmoe_attention_values(int backend, int order, const float* weights, const uint16_t* values,
                            const int64_t* entries, const int64_t* runs, uint16_t* out, size_t requests, size_t heads,
                            size_t groups, size_t numbers, size_t slots, size_t block, size_t threads) {
  using namespace zipmoe::attention;
  const Found found = kernel_of(backend, order);
  if (found.kernel == nullptr || (order == kPairs && (block == 0 || block % 2 != 0))) return kUnknown;
  Outputs job;
  job.sizes = {requests, heads, groups, numbers, slots};
  job.entries = reinterpret_cast<const Entry*>(entries);
  job.runs = reinterpret_cast<const Run*>(runs);
  job.kernel = found.kernel;
  job.weights = weights;
  job.values = values;
  job.out = out;
  job.block = block;
  return job.share_out(threads > 0 ? threads : 1, values_turn);
}
