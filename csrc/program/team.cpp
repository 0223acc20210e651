#include "team.h"

namespace int8d {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int workers, std::chrono::microseconds spin) : workers_(workers), spin_(spin) {
  for (int worker = 1; worker < workers_; ++worker) threads_.emplace_back([this, worker] { work(worker); });
}

Team::~Team() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::wait_change(const std::atomic<uint32_t>& value, uint32_t old) const {
  // Whoever is waited for may be waiting for this very core: a long spin offers it, again and again.
  constexpr std::chrono::microseconds kAlone{20};
  const auto start = std::chrono::steady_clock::now();
  for (auto now = start; now - start < spin_ || now == start; now = std::chrono::steady_clock::now()) {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
    if (now - start > kAlone) std::this_thread::yield();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void Team::barrier() {
  if (workers_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_change(phase_, phase);
  }
}

void Team::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    wait_change(generation_, seen);
    ++seen;
    if (stop_.load()) return;
    job_(context_, worker, *this);
    barrier();
  }
}

void Team::run(Job job, void* context) {
  job_ = job;
  context_ = context;
  if (workers_ > 1) {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  job(context, 0, *this);
  barrier();
}

}  // namespace int8d
