// A minimal test harness: TEST(name) { CHECK(…); } in any file, run by test_main.cpp.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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

// Where a buffer touches a page that can't be touched.
enum class Flush { end, start };

struct Random {
  std::mt19937 engine;
  explicit Random(uint32_t seed) : engine(seed) {}
  int in(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
  Flush flush() { return in(0, 1) ? Flush::start : Flush::end; }
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
  // Makes `w` u8 weights less a zero point, as much of them as s8 holds; returns the rest, empty where there is none.
  std::vector<int16_t> rests(std::vector<int8_t>& w, int kind) {
    constexpr int kZeroPoints[] = {0, 128, 255};
    const int zero_point = in(0, 1) ? in(0, 255) : kZeroPoints[in(0, 2)];
    std::vector<int16_t> rest(w.size());
    bool any = false;
    for (size_t i = 0; i < w.size(); ++i) {
      // By kind: all bytes, the extremes, or few of those: by chance, or what is farther away in every other step.
      const bool far = kind == 1 || (kind == 2 && in(0, 29) == 0) || (kind == 3 && i % 8 == 0);
      const int byte = kind == 3 && far ? (zero_point < 128) * 255
                       : far            ? in(0, 1) * 255
                       : kind == 0      ? in(0, 255)
                                        : std::clamp(zero_point + in(-60, 60), 0, 255);
      w[i] = static_cast<int8_t>(std::clamp(byte - zero_point, -128, 127));
      rest[i] = static_cast<int16_t>(byte - zero_point - w[i]);
      any = any || rest[i];
    }
    if (!any) rest.clear();
    return rest;
  }
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// How often memory was asked for so far, by whatever call, and how many bytes are held (testing_memory.cpp).
size_t allocations();
size_t allocated_bytes();

// `bytes` of memory that end flush against a page that can't be touched, or begin behind one: an access past it is a
// crash. What is written at the other side, where the page has room, is found when the buffer goes. Aligned to what
// divides `bytes`.
class Guarded {
 public:
  explicit Guarded(size_t bytes, Flush flush = Flush::end)
      : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), room_((bytes + page_ - 1) / page_ * page_), bytes_(bytes) {
    base_ = static_cast<uint8_t*>(mmap(nullptr, room_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + page_, room_, PROT_READ | PROT_WRITE);
    data_ = base_ + page_ + (flush == Flush::end ? room_ - bytes : 0);
    slack_ = flush == Flush::end ? base_ + page_ : data_ + bytes;
    std::memset(slack_, kMark, room_ - bytes);
  }
  ~Guarded() {
    for (size_t i = 0; i < room_ - bytes_; ++i)
      if (slack_[i] != kMark) {
        CHECK(slack_[i] == kMark, "a byte written %td bytes from a buffer of %zu", slack_ + i - data_, bytes_);
        break;
      }
    munmap(base_, room_ + 2 * page_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() { return data_; }

 private:
  static constexpr uint8_t kMark = 0xcd;
  size_t page_, room_, bytes_;
  uint8_t *base_, *data_, *slack_;
};

}  // namespace int8d::testing
