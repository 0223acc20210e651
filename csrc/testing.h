// A minimal test harness: TEST(name) { CHECK(…); } in any file, run by test_main.cpp.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace int8d::testing {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();
inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

#define TEST(name)                                                           \
  static void test_##name();                                                 \
  static const int8d::testing::Register register_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(condition, ...)                                    \
  do {                                                           \
    if (!(condition)) {                                          \
      ++int8d::testing::failures;                                \
      std::printf("%s:%d: %s ", __FILE__, __LINE__, #condition); \
      __VA_OPT__(std::printf(__VA_ARGS__);)                      \
      std::printf("\n");                                         \
    }                                                            \
  } while (false)

struct Random {
  std::mt19937 engine;
  explicit Random(uint32_t seed) : engine(seed) {}
  int in(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
  float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }
  // All bytes, or only the extremes.
  void fill(uint8_t* data, size_t count) {
    const bool extreme = in(0, 3) == 0;
    for (size_t i = 0; i < count; ++i) data[i] = static_cast<uint8_t>(extreme ? in(0, 1) * 255 : in(0, 255));
  }
  std::vector<int8_t> weights(size_t count) {
    std::vector<int8_t> w(count);
    const bool extreme = in(0, 2) == 0;
    for (int8_t& v : w) v = static_cast<int8_t>(extreme ? (in(0, 1) ? 127 : -128) : in(-128, 127));
    return w;
  }
};

// `bytes` of memory that end flush against a page that can't be touched: an access past kOverread is a crash.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    mapped_ = (bytes + page_ - 1) / page_ * page_ + page_;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_ - page_, page_, PROT_NONE);
    data_ = base_ + mapped_ - page_ - bytes;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() { return data_; }

 private:
  size_t page_, mapped_;
  uint8_t *base_, *data_;
};

}  // namespace int8d::testing
