// The C interface of tile form: checks backend and sizes, and distributes tiles over threads.
#include "tile/tile.h"

#include <string.h>

#include <atomic>

#include "pool/thread_memory.h"
#include "pool/worker_pool.h"

#if defined(__x86_64__)

namespace zipmoe::tile {
namespace {

constexpr size_t kMacsAThread = 1 << 18;  // less is not worth waking a thread for
constexpr size_t kTurns = 8;              // of each thread, so that fast threads can take over turns of a slow one
constexpr size_t kMostRows = 512;         // computed together

thread_local ThreadMemory packed_memory, scratch_memory;

bool is_supported(int backend) {
  const char* name = zipmoe_backend_name(backend);
  return name != nullptr && strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512bf16");
}

// Tiles in turns, each computed by one thread.
struct Job {
  const Matrix& matrix;
  size_t tiles_a_turn;
  std::atomic<int> result{kDone};

  Job(const Matrix& tiles, size_t threads)
      : matrix(tiles), tiles_a_turn(threads == 1 ? tiles.shape.tiles()
                                                 : (tiles.shape.tiles() - 1) / (threads * kTurns) + 1) {}

  size_t turns() const { return (matrix.shape.tiles() + tiles_a_turn - 1) / tiles_a_turn; }
  size_t first(size_t turn) const { return turn * tiles_a_turn; }
  size_t count(size_t turn) const {
    const size_t left = matrix.shape.tiles() - first(turn);
    return left < tiles_a_turn ? left : tiles_a_turn;
  }
  void fail(Result result_of_turn) { result.store(result_of_turn, std::memory_order_relaxed); }
};

struct LinearJob : Job {
  const linear::Task& task;
  const void* packed;

  LinearJob(const Matrix& tiles, size_t threads, const linear::Task& all, const void* inputs)
      : Job(tiles, threads), task(all), packed(inputs) {}
};

void linear_turn(void* context, size_t turn) {
  LinearJob& job = *static_cast<LinearJob*>(context);
  void* scratch = scratch_memory.get(scratch_bytes_avx512(job.task.m));
  if (scratch == nullptr) return job.fail(kNoMemory);
  if (!multiply_avx512(job.task, job.packed, job.matrix, job.first(turn), job.count(turn), scratch)) job.fail(kCorrupt);
}

int run_linear(const linear::Task& all, const Matrix& matrix, size_t threads) {
  for (size_t begin = 0; begin < all.m; begin += kMostRows) {
    linear::Task task = all;
    task.x += begin * all.k;
    task.out += begin * all.n;
    task.m = all.m - begin < kMostRows ? all.m - begin : kMostRows;
    const size_t bytes = packed_bytes_avx512(task.m, task.k);
    void* packed = packed_memory.get(bytes);
    if (packed == nullptr && bytes > 0) return kNoMemory;
    pack_avx512(task, packed);
    const size_t worth = 1 + task.m * task.n * task.k / kMacsAThread;
    const size_t used = threads < worth ? threads : worth;
    LinearJob job(matrix, used, task, packed);
    run_on_pool(used, job.turns(), linear_turn, &job);
    if (job.result != kDone) return job.result;
  }
  return kDone;
}

}  // namespace
}  // namespace zipmoe::tile

int zipmoe_tile_is_supported(int backend) { return zipmoe::tile::is_supported(backend); }

size_t zipmoe_tile_bound(size_t n, size_t k) { return zipmoe::tile::Shape{n, k}.bound(); }

int zipmoe_tile_from_cascade(int backend, const zipmoe_part* parts, size_t count, size_t n, size_t k, uint8_t* out,
                             size_t room, size_t* used) {
  using namespace zipmoe::tile;
  const Shape shape = {n, k};
  if (!is_supported(backend) || shape.bound() == 0) return kUnknown;
  return encode_parts_avx512(parts, count, shape, {out, room, used});
}

int zipmoe_tile_from_bf16(int backend, const uint16_t* weight, size_t n, size_t k, uint8_t* out, size_t room,
                          size_t* used) {
  using namespace zipmoe::tile;
  const Shape shape = {n, k};
  if (!is_supported(backend) || shape.bound() == 0) return kUnknown;
  return encode_bf16_avx512(weight, shape, {out, room, used});
}

int zipmoe_tile_to_bf16(int backend, const uint8_t* tiles, size_t tiles_bytes, size_t n, size_t k, uint16_t* weight) {
  using namespace zipmoe::tile;
  if (!is_supported(backend)) return kUnknown;
  Matrix matrix;
  if (!open_matrix(tiles, tiles_bytes, {n, k}, &matrix)) return kCorrupt;
  void* scratch = scratch_memory.get(scratch_bytes_avx512(0));
  if (scratch == nullptr) return kNoMemory;
  for (size_t tile = 0; tile < matrix.shape.tiles(); ++tile) {
    if (!recover_avx512(matrix, tile, scratch, weight + tile * kTileOutputs * k)) return kCorrupt;
  }
  return kDone;
}

int zipmoe_tile_linear(int backend, const uint16_t* x, const uint8_t* tiles, size_t tiles_bytes, const uint16_t* bias,
                       uint16_t* out, size_t m, size_t n, size_t k, size_t k_block, size_t parts, size_t threads) {
  using namespace zipmoe::tile;
  if (!is_supported(backend) || !zipmoe::linear::fits(zipmoe::linear::kPairs, k_block, parts)) return kUnknown;
  Matrix matrix;
  if (!open_matrix(tiles, tiles_bytes, {n, k}, &matrix)) return kCorrupt;
  if (n == 0) return kDone;
  const size_t k_part = zipmoe::linear::part_of(k, k_block, parts);
  return run_linear({x, bias, out, m, n, k, k_block, k_part, false}, matrix, threads > 0 ? threads : 1);
}

#else

int zipmoe_tile_is_supported(int) { return 0; }
size_t zipmoe_tile_bound(size_t n, size_t k) { return zipmoe::tile::Shape{n, k}.bound(); }
int zipmoe_tile_from_cascade(int, const zipmoe_part*, size_t, size_t, size_t, uint8_t*, size_t, size_t*) {
  return -1;
}
int zipmoe_tile_from_bf16(int, const uint16_t*, size_t, size_t, uint8_t*, size_t, size_t*) { return -1; }
int zipmoe_tile_to_bf16(int, const uint8_t*, size_t, size_t, size_t, uint16_t*) { return -1; }
int zipmoe_tile_linear(int, const uint16_t*, const uint8_t*, size_t, const uint16_t*, uint16_t*, size_t, size_t, size_t,
                       size_t, size_t, size_t) {
  return -1;
}

#endif
