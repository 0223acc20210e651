// A team of threads that works through a list of steps together.
//
// The caller of run() is worker 0. Between steps all meet at a barrier. Whoever waits spins for a short while, which
// costs less than a sleep where steps take microseconds, and then sleeps in the kernel: an idle team uses no CPU.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace int8d {

class Team {
 public:
  using Job = void (*)(void* context, int worker, Team& team);

  Team(int workers, std::chrono::microseconds spin);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int workers() const { return workers_; }
  void run(Job job, void* context);  // returns when every worker has finished; one caller at a time
  void barrier();                    // from within a job, by every worker

 private:
  void work(int worker);
  void wait_change(const std::atomic<uint32_t>& value, uint32_t old) const;

  const int workers_;
  const std::chrono::nanoseconds spin_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};  // counts jobs
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // counts barriers
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace int8d
