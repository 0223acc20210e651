// Operators that move elements: those that are no work, constants, and the same bytes on any team, with halos around.
#include <functional>

#include "../testing.h"
#include "program.h"

namespace int8d::testing {
namespace {

constexpr int kSide = 13, kChannels = 20, kMap = kSide * kSide * kChannels, kPadded = (2 * kSide + 2) * kSide * 20;

// A map and its transpose that padded convolutions read, a constant with a halo, a flipped slice, padding, resizing, an
// index of s32 that is joined with itself.
std::unique_ptr<Program> moves(const char* isa, int threads) {
  Random r(41);
  Builder b(isa, threads);
  const std::vector<int8_t> weight = r.weights(kChannels * 9 * kChannels);
  const std::vector<int32_t> bias(kChannels, 1000);
  const std::vector<float> multiplier(kChannels, 0.0005f);
  auto map = [&](int h, int w) { return b.tensor({1, h, w, kChannels}, Dtype::u8, 20); };
  auto conv = [&](const char* name, int in, int h, int w) {
    const int out = map(h, w);
    b.conv2d(name, in, out, {weight, bias, multiplier, 0, 255}, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 1);
    return out;
  };
  const int x = map(kSide, kSide);
  b.input(x, false);
  const int fixed = map(kSide, kSide);
  std::vector<uint8_t> value(kMap);
  r.fill(value.data(), value.size());
  b.constant("fixed", fixed, value);
  const int stem = conv("stem", x, kSide, kSide), turned = map(kSide, kSide);
  b.transpose("turned", stem, turned, std::array{0, 2, 1, 3});
  const int left = conv("left", turned, kSide, kSide), flipped = map(kSide, kSide);
  b.slice("flipped", stem, flipped, std::array<int64_t, 4>{0, kSide - 1, 0, 0}, std::array<int64_t, 4>{1, -1, 1, 1});
  const int sum = map(kSide, kSide), late = conv("late", fixed, kSide, kSide), all = map(kSide, kSide);
  b.add("sum", left, flipped, sum, 0.5f, 0.5f, 0, 255);
  b.add("all", sum, late, all, 0.6f, 0.5f, 0, 255);
  const int padded = map(2 * kSide + 2, kSide);
  b.pad("padded", all, padded, std::array<int64_t, 4>{0, 1, 0, 0}, std::array<int64_t, 4>{0, 2, 0, 0},
        std::array<int64_t, 4>{0, 1, 0, 0}, 20);
  std::vector<int32_t> rows, columns;
  for (int i = 0; i < kSide; ++i) {
    rows.insert(rows.end(), {i, std::min(i + 3, 2 * kSide + 1), 700});
    columns.insert(columns.end(), {i / 2, std::min(i / 2 + 1, kSide - 1), i % 2 * 1024});
  }
  const int resized = map(kSide, kSide);
  b.resize2d("resized", padded, resized, rows, columns);
  const int head = conv("head", resized, kSide, kSide);
  const int index = b.tensor({1, kSide, kSide}, Dtype::s32, 0), pair = b.tensor({2, kSide, kSide}, Dtype::s32, 0);
  b.argmax("index", head, index);
  b.concat("pair", std::array{index, index}, pair, 0, {{}, {}});
  b.output(padded, false);
  b.output(pair, false);
  return b.build();
}

struct Result {
  std::vector<uint8_t> padded, pair;
  bool operator==(const Result&) const = default;
};

Result run(Program& program, int seed, Flush flush) {
  constexpr size_t kPair = 2 * kSide * kSide * sizeof(int32_t);
  Guarded in(kMap, flush), padded(kPadded, flush), pair(kPair, flush);
  Random(static_cast<uint32_t>(seed)).fill(in.data(), kMap);
  const void* inputs[] = {in.data()};
  void* outputs[] = {padded.data(), pair.data()};
  program.run(inputs, outputs);
  return {{padded.data(), padded.data() + kPadded}, {pair.data(), pair.data() + kPair}};
}

}  // namespace

TEST(moves_give_the_same_bytes_on_any_instruction_set_and_team) {
  const auto reference = moves("ref", 1);
  const Result expected[] = {run(*reference, 1, Flush::end), run(*reference, 2, Flush::start)};
  CHECK(expected[0].padded != expected[1].padded && expected[0].pair != expected[1].pair);
  for (Isa isa : supported_isas())
    for (int threads : {1, 2, 3, 5}) {
      const auto program = moves(isa_name(isa), threads);
      for (int i = 0; i < 20; ++i)
        CHECK(run(*program, 1 + i % 2, i % 3 ? Flush::end : Flush::start) == expected[i % 2], "%s, %d threads, run %d",
              isa_name(isa), threads, i);
    }
}

TEST(moves_allocate_nothing) {
  const auto program = moves("auto", 2);
  std::vector<uint8_t> in(kMap), padded(kPadded), pair(2 * kSide * kSide * sizeof(int32_t));
  const void* inputs[] = {in.data()};
  void* outputs[] = {padded.data(), pair.data()};
  program->run(inputs, outputs);
  const size_t before = allocations();
  for (int i = 0; i < 50; ++i) program->run(inputs, outputs);
  CHECK(allocations() == before, "%zu allocations", allocations() - before);
}

TEST(a_move_that_is_no_work_is_an_alias) {
  using Add = std::function<void(Builder&, int in, int out)>;
  struct Case {
    std::vector<int64_t> in, out;
    Add add;
    bool alias;
    int first;  // element of the input
  };
  auto transpose = [](std::vector<int> axes) {
    return [=](Builder& b, int in, int out) { b.transpose("move", in, out, axes); };
  };
  auto slice = [](std::vector<int64_t> begin, std::vector<int64_t> step) {
    return [=](Builder& b, int in, int out) { b.slice("move", in, out, begin, step); };
  };
  const Add expand = [](Builder& b, int in, int out) { b.expand("move", in, out); };
  const Case cases[] = {
      {{1, 3, 1, 4}, {3, 1, 1, 4}, transpose({1, 0, 2, 3}), true, 0},
      {{1, 3, 2, 4}, {1, 2, 3, 4}, transpose({0, 2, 1, 3}), false, 0},
      {{3, 4}, {3, 4}, slice({0, 0}, {1, 1}), true, 0},
      {{3, 2, 4}, {1, 2, 4}, slice({2, 0, 0}, {1, 1, 1}), true, 16},
      {{3, 2, 4}, {1, 1, 3}, slice({1, 1, 1}, {1, 5, 1}), true, 13},
      {{3, 4}, {3, 3}, slice({0, 0}, {1, 1}), false, 0},
      {{3, 4}, {3, 4}, slice({2, 0}, {-1, 1}), false, 0},
      {{3, 4}, {3, 4}, expand, true, 0},
      {{3, 1}, {3, 4}, expand, false, 0},
  };
  for (size_t i = 0; i < std::size(cases); ++i) {
    const Case& c = cases[i];
    for (Dtype dtype : {Dtype::u8, Dtype::s32}) {
      Builder b("auto", 1);
      const int x = b.tensor(c.in, dtype, 0), y = b.tensor(c.in, dtype, 0), z = b.tensor(c.out, dtype, 0);
      b.input(x, false);
      b.concat("copy", std::array{x}, y, 0, {{}});
      c.add(b, y, z);
      b.output(z, false);
      const auto program = b.build();
      CHECK((program->steps()[1].kernel == "alias") == c.alias, "case %zu", i);
      const size_t element = dtype == Dtype::u8 ? 1 : 4;
      std::vector<uint8_t> in(program->input_bytes(0)), out(program->output_bytes(0));
      for (size_t k = 0; k < in.size(); ++k) in[k] = static_cast<uint8_t>(k);
      const void* inputs[] = {in.data()};
      void* outputs[] = {out.data()};
      program->run(inputs, outputs);
      if (c.alias)
        CHECK(std::memcmp(out.data(), in.data() + static_cast<size_t>(c.first) * element, out.size()) == 0, "case %zu",
              i);
    }
  }
}

TEST(a_program_may_be_constants_alone) {
  Builder b("auto", 2);
  const int x = b.tensor({2, 3}, Dtype::f32, 0), y = b.tensor({3, 2}, Dtype::f32, 0);
  const std::vector<float> value = {1, 2, 3, 4, 5, 6}, turned = {1, 4, 2, 5, 3, 6};
  b.constant("value", x, {reinterpret_cast<const uint8_t*>(value.data()), value.size() * sizeof(float)});
  b.transpose("turned", x, y, std::array{1, 0});
  b.output(x, false);
  b.output(y, false);
  const auto program = b.build();
  std::vector<float> a(6), c(6);
  void* outputs[] = {a.data(), c.data()};
  for (int i = 0; i < 3; ++i) program->run(nullptr, outputs);
  CHECK(a == value && c == turned);
  Builder alone("auto", 1);
  alone.constant("value", alone.tensor({1}, Dtype::u8, 0), std::array<uint8_t, 1>{7});
  alone.output(0, false);
  uint8_t seven = 0;
  void* one[] = {&seven};
  int64_t nanoseconds = -1;
  alone.build()->profile(nullptr, one, &nanoseconds);
  CHECK(seven == 7 && nanoseconds >= 0);
}

TEST(a_builder_refuses_moves_that_do_not_fit) {
  auto refused = [](const std::vector<int64_t>& out, auto add) {
    Builder b("ref", 1);
    const int x = b.tensor({1, 4, 4, 3}, Dtype::u8, 5), y = b.tensor(out, Dtype::u8, 5);
    b.input(x, false);
    try {
      add(b, x, y);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  using Counts = std::array<int64_t, 4>;
  const Counts none{0, 0, 0, 0}, ones{1, 1, 1, 1};
  for (const auto& axes : {std::array{0, 1, 2, 2}, std::array{0, 1, 2, 4}, std::array{0, 1, 2, -1}})
    CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.transpose("m", x, y, axes); }));
  CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.transpose("m", x, y, std::array{0, 3, 1, 2}); }));
  CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.slice("m", x, y, Counts{0, 1, 0, 0}, ones); }));
  CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.slice("m", x, y, none, Counts{1, -1, 1, 1}); }));
  CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.slice("m", x, y, none, Counts{1, 0, 1, 1}); }));
  CHECK(refused({1, 4, 8, 3}, [](Builder& b, int x, int y) { b.expand("m", x, y); }));
  CHECK(refused({1, 4, 4}, [](Builder& b, int x, int y) { b.expand("m", x, y); }));
  CHECK(refused({1, 5, 4, 3}, [&](Builder& b, int x, int y) { b.pad("m", x, y, none, none, none, 0); }));
  CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.pad("m", x, y, none, none, none, 256); }));
  CHECK(refused({1, 4, 4, 3},
                [&](Builder& b, int x, int y) { b.pad("m", x, y, Counts{0, 1, 0, 0}, Counts{0, -1, 0, 0}, none, 0); }));
  std::vector<int32_t> blends(12, 0);
  CHECK(!refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.resize2d("m", x, y, blends, blends); }));
  for (const auto& [place, bad] : {std::pair{0, 4}, {1, -1}, {2, 2049}, {2, -1}}) {
    std::vector<int32_t> wrong = blends;
    wrong[static_cast<size_t>(place)] = bad;
    CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.resize2d("m", x, y, wrong, blends); }));
    CHECK(refused({1, 4, 4, 3}, [&](Builder& b, int x, int y) { b.resize2d("m", x, y, blends, wrong); }));
  }
  CHECK(refused({1, 4, 4}, [](Builder& b, int x, int y) { b.argmax("m", x, y); }));  // u8
  CHECK(refused({1, 4, 4, 3}, [](Builder& b, int, int y) { b.constant("m", y, std::array<uint8_t, 3>{}); }));
}

}  // namespace int8d::testing
