// A loop over threads that live as long as it does: for what is done once, while a program is built.
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace int8d {

// Calls each(i) for every i below count, in about that order, from `threads` threads, the caller among them. Returns
// when all are done; what the first failing call has thrown is thrown again here.
template <typename Each>
void parallel_for(size_t count, int threads, const Each& each) {
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  auto work = [&] {
    try {
      for (size_t i; (i = next.fetch_add(1)) < count;) each(i);
    } catch (...) {
      next.store(count);
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (size_t i = 1; i < std::min(count, static_cast<size_t>(threads)); ++i) helpers.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace int8d
