#include "pool/worker_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace zipmoe {
namespace {

constexpr size_t kMostHelpers = 255;
constexpr size_t kMostIndices = 0xffff;
// An idle thread looks for work so many times before it sleeps. The looks take about 25 microseconds, the usual time
// between two linears of a layer. Waking a sleeping thread takes several times as long.
constexpr int kSpins = 1000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

void futex_wait(std::atomic<uint32_t>* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>* word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// Job number (32 bits), number of indices (16) and next index (16) in one word. A thread takes an index by a compare
// and swap, which fails if the job has changed meanwhile. A job does not end while a thread holds one of its indices.
struct Ticket {
  uint64_t word;

  Ticket(uint64_t w) : word(w) {}
  Ticket(uint32_t job, size_t count) : word(uint64_t{job} << 32 | uint64_t{count} << 16) {}
  uint32_t job() const { return static_cast<uint32_t>(word >> 32); }
  size_t count() const { return word >> 16 & 0xffff; }
  size_t next() const { return word & 0xffff; }
};

class Pool {
 public:
  void run(size_t threads, size_t count, void (*function)(void*, size_t), void* context) {
    const size_t wanted = threads - 1 < count - 1 ? threads - 1 : count - 1;
    if (wanted == 0 || count > kMostIndices || !enter()) {
      for (size_t index = 0; index < count; ++index) function(context, index);
      return;
    }
    start(wanted);
    keep_helpers_off(sched_getcpu());
    run_ = function;
    context_ = context;
    helpers_.store(wanted < started_ ? wanted : started_, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t job = job_.load(std::memory_order_relaxed) + 1;
    ticket_.store(Ticket(job, count).word, std::memory_order_release);
    job_.store(job, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) futex_wake(&job_, static_cast<int>(started_));
    take_all(job);
    for (int spins = 0; done_.load(std::memory_order_acquire) != count;) {
      if (++spins < kSpins) {
        relax();
        continue;
      }
      const uint32_t done = done_.load(std::memory_order_acquire);
      if (done != count) futex_wait(&done_, done);
    }
    busy_.clear(std::memory_order_release);
  }

 private:
  std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> job_{0};
  std::atomic<uint32_t> done_{0};
  std::atomic<size_t> helpers_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  void (*run_)(void*, size_t) = nullptr;
  void* context_ = nullptr;
  size_t started_ = 0;
  pid_t owner_ = 0;
  static constexpr int kNone = -1;
  int avoided_cpu_ = kNone;  // where no helper runs

  bool enter() {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    const pid_t process = getpid();
    if (owner_ != process) {  // the first call, or the first one of a forked child, which has no helpers
      owner_ = process;
      started_ = 0;
      avoided_cpu_ = kNone;
      sleepers_.store(0, std::memory_order_relaxed);
    }
    return true;
  }

  // Starts helpers until `wanted` are running or the system refuses one. Helpers block all signals, so that signals
  // reach the program's own threads.
  void start(size_t wanted) {
    if (wanted > kMostHelpers) wanted = kMostHelpers;
    if (started_ >= wanted) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; started_ < wanted; ++started_) {
      helper_[started_].pool = this;
      helper_[started_].number = started_;
      if (pthread_create(&helper_[started_].thread, nullptr, help, &helper_[started_]) != 0) break;
      pthread_detach(helper_[started_].thread);
      avoided_cpu_ = kNone;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // The kernel often places a woken helper on the CPU of the waking thread. Both threads then alternate on one CPU for
  // milliseconds, until the kernel moves one. The pool therefore keeps helpers off the CPU of the caller.
  void keep_helpers_off(int cpu) {
    if (cpu == avoided_cpu_ || cpu < 0) return;
    avoided_cpu_ = cpu;
    cpu_set_t others;
    if (sched_getaffinity(0, sizeof others, &others) != 0 || cpu >= CPU_SETSIZE) return;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0) return;
    for (size_t i = 0; i < started_; ++i) pthread_setaffinity_np(helper_[i].thread, sizeof others, &others);
  }

  struct Helper {
    Pool* pool;
    size_t number;
    pthread_t thread;
  };
  Helper helper_[kMostHelpers] = {};

  static void* help(void* argument) {
    const Helper* helper = static_cast<const Helper*>(argument);
    helper->pool->work(helper->number);
    return nullptr;
  }

  void work(size_t number) {
    for (uint32_t seen = 0;;) {
      seen = await_job(seen);
      if (number < helpers_.load(std::memory_order_relaxed) && take_all(seen)) futex_wake(&done_, 1);
    }
  }

  uint32_t await_job(uint32_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint32_t job = job_.load(std::memory_order_acquire);
      if (job != seen) return job;
      relax();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    uint32_t job;
    while ((job = job_.load(std::memory_order_seq_cst)) == seen) futex_wait(&job_, seen);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return job;
  }

  // Runs the remaining indices of a job. Returns whether one of these calls was the last of the job.
  bool take_all(uint32_t job) {
    bool ended = false;
    uint64_t word = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const Ticket ticket(word);
      if (ticket.job() != job || ticket.next() == ticket.count()) return ended;
      if (!ticket_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      run_(context_, ticket.next());
      ended = done_.fetch_add(1, std::memory_order_acq_rel) + 1 == ticket.count();
      word = ticket_.load(std::memory_order_acquire);
    }
  }
};

}  // namespace

void run_on_pool(size_t threads, size_t count, void (*run)(void* context, size_t index), void* context) {
  static Pool* pool = new Pool;  // never destroyed: helpers may still look at it while the process ends
  if (count == 0) return;
  pool->run(threads ? threads : 1, count, run, context);
}

}  // namespace zipmoe
