// The loop that packs weights: all is done, once, and what a call throws arrives.
#include <stdexcept>

#include "../testing.h"
#include "parallel.h"

namespace int8d::testing {

TEST(a_parallel_loop_does_all_and_hands_on_what_is_thrown) {
  for (int threads : {1, 2, 5}) {
    std::vector<std::atomic<int>> done(100);
    parallel_for(done.size(), threads, [&](size_t i) { ++done[i]; });
    for (const std::atomic<int>& count : done) CHECK(count == 1);
    bool thrown = false;
    try {
      parallel_for(100, threads, [](size_t i) {
        if (i == 7) throw std::runtime_error("7");
      });
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
  }
}

}  // namespace int8d::testing
