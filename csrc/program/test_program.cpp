// The program: no allocation in run(), nothing kept by it, the same bytes for any number of threads, slots that never
// overlap, a team that TSan finds nothing in (build with -DINT8D_SANITIZE=thread).
#include <atomic>
#include <fstream>
#include <list>
#include <map>
#include <thread>

#include "../testing.h"
#include "arena.h"
#include "program.h"
#include "team.h"

namespace int8d::testing {
namespace {

// A residual network: convolutions with halos, fused and plain sums, pools, a depthwise layer, concat, a gate of steps
// too small to share, a head.
std::unique_ptr<Program> network(const char* isa, int threads, const std::map<std::string, Choice>& choices = {},
                                 std::vector<Option>* options = nullptr) {
  Random r(11);
  Builder b(isa, threads);
  for (const auto& [name, choice] : choices) b.choose(name, choice);
  std::list<std::tuple<std::vector<int8_t>, std::vector<int32_t>, std::vector<float>>> kept;  // until build()
  auto conv = [&](const char* name, int in, int ic, int h, int w, int oc, int k, int stride, int groups) {
    const int out = b.tensor({1, (h - 1) / stride + 1, (w - 1) / stride + 1, oc}, Dtype::u8, 20);
    kept.emplace_back(r.weights(static_cast<size_t>(oc) * k * k * (ic / groups)),
                      std::vector<int32_t>(static_cast<size_t>(oc), 1000),
                      std::vector<float>(static_cast<size_t>(oc), 0.001f));
    const auto& [weight, bias, multiplier] = kept.back();
    b.conv2d(name, in, out, {weight, bias, multiplier, 0, 255},
             {{k, k}, {stride, stride}, {1, 1}, {k / 2, k / 2, k / 2, k / 2}}, groups);
    return out;
  };
  const int x = b.tensor({1, 23, 19, 3}, Dtype::u8, 128);
  b.input(x, false);
  const int stem = conv("stem", x, 3, 23, 19, 40, 3, 1, 1);
  const int left = conv("left", stem, 40, 23, 19, 40, 3, 1, 1);
  const int sum = b.tensor({1, 23, 19, 40}, Dtype::u8, 20);
  b.add("sum", left, stem, sum, 0.7f, 0.4f, 20, 255);
  const int again = b.tensor({1, 23, 19, 40}, Dtype::u8, 20);
  b.add("again", sum, stem, again, 0.5f, 0.5f, 0, 255);
  const int depthwise = conv("depthwise", again, 40, 23, 19, 40, 5, 2, 40);
  const int pool = b.tensor({1, 12, 10, 40}, Dtype::u8, 20);
  b.max_pool2d("pool", again, pool, {{3, 3}, {2, 2}, {1, 1}, {1, 1, 1, 1}});
  const int wide = b.tensor({1, 12, 10, 80}, Dtype::u8, 20);
  const int parts[] = {depthwise, pool};
  b.concat("wide", parts, wide, 3, {{}, {}});
  const int mean = b.tensor({1, 1, 1, 80}, Dtype::u8, 20), gate = b.tensor({1, 1, 1, 80}, Dtype::u8, 0);
  const std::vector<float> multipliers(121, 1.0f / 120);
  b.avg_pool2d("mean", wide, mean, {{12, 10}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, true, multipliers, 0, 255);
  std::vector<uint8_t> table(256);
  for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = static_cast<uint8_t>(i * 5 + 3);
  const int squeeze = conv("squeeze", mean, 80, 1, 1, 20, 1, 1, 1), squeezed = b.tensor({1, 1, 1, 20}, Dtype::u8, 20);
  b.lut("squeezed", squeeze, squeezed, table);
  b.lut("gate", conv("excite", squeezed, 20, 1, 1, 80, 1, 1, 1), gate, table);
  const int scaled = b.tensor({1, 12, 10, 80}, Dtype::u8, 20);
  b.mul("scaled", wide, gate, scaled, 0.004f, 0, 255);
  const int out = conv("head", scaled, 80, 12, 10, 33, 1, 1, 1);
  b.output(out, true);
  b.output(sum, false);
  if (options) *options = b.options();
  return b.build();
}

struct Run {
  std::vector<uint8_t> in, a, b;
  Run() : in(23 * 19 * 3), a(12 * 10 * 33), b(23 * 19 * 40) { Random(12).fill(in.data(), in.size()); }
  void operator()(Program& program) {
    const void* inputs[] = {in.data()};
    void* outputs[] = {a.data(), b.data()};
    program.run(inputs, outputs);
  }
};

size_t resident_bytes() {
  size_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST(programs_give_the_same_bytes_on_any_instruction_set_and_team) {
  Run expected;
  expected(*network("ref", 1));
  for (Isa isa : supported_isas())
    for (int threads : {1, 2, 3, 5}) {
      Run run;
      const auto program = network(isa_name(isa), threads);
      for (int i = 0; i < 20; ++i) {
        run(*program);
        CHECK(run.a == expected.a && run.b == expected.b, "%s, %d threads, run %d", isa_name(isa), threads, i);
      }
    }
}

TEST(every_choice_gives_the_same_bytes) {
  Run expected;
  expected(*network("ref", 1));
  for (Isa isa : supported_isas())
    for (int threads : {1, 2, 3}) {
      std::vector<Option> options;
      network(isa_name(isa), threads, {}, &options);
      bool fused = false;
      for (const Option& option : options)
        for (const Choice& choice : option.candidates) {
          Run run;
          run(*network(isa_name(isa), threads, {{option.op, choice}}));
          CHECK(run.a == expected.a && run.b == expected.b, "%s, %d threads: %s as %s, %s, %d", isa_name(isa), threads,
                option.op.c_str(), choice.kernel.c_str(), split_name(choice.split), choice.fused);
          fused |= option.op == "left" && option.taker == "sum" && !choice.fused;
        }
      CHECK(fused, "%s, %d threads: fusion is no option", isa_name(isa), threads);
    }
}

TEST(a_choice_is_what_the_program_does) {
  auto step = [](const Program& program, const char* name) {
    for (const StepInfo& info : program.steps())
      if (info.names[0] == name) return info;
    return StepInfo{};
  };
  for (const Split split : {Split::rows, Split::panels})
    CHECK(step(*network("ref", 2, {{"stem", {"", split, true}}}), "stem").split == split);
  CHECK(step(*network("ref", 2), "left").names.size() == 2);
  CHECK(step(*network("ref", 2, {{"left", {"", Split::automatic, false}}}), "left").names.size() == 1);
  const auto usual = network("auto", 1);
  for (const auto& [name, other] : std::map<std::string, Choice>{
           {"stem", {"no_such_kernel", Split::panels, true}}, {"no_such_operator", {}}, {"pool", {"x", {}, false}}}) {
    const auto program = network("auto", 1, {{name, other}});
    for (size_t i = 0; i < program->steps().size(); ++i)
      CHECK(program->steps()[i].kernel == usual->steps()[i].kernel, "%s", name.c_str());
  }
}

TEST(run_allocates_nothing) {
  const size_t start = allocations();
  void* volatile some = std::malloc(1);  // volatile, or the compiler does without
  std::free(some);
  some = std::aligned_alloc(64, 64);
  std::free(some);
  std::vector<int>* volatile one = new std::vector<int>;
  delete one;
  // TSan tells its hooks nothing of aligned_alloc.
  CHECK(allocations() >= start + (kSanitized ? 2 : 3), "allocations aren't counted");
  for (Isa isa : supported_isas())
    for (int threads : {1, 2}) {
      Run run;
      const auto program = network(isa_name(isa), threads);
      run(*program);
      const size_t before = allocations();
      for (int i = 0; i < (isa == Isa::ref ? 10 : 200); ++i) run(*program);
      CHECK(allocations() == before, "%s, %d threads: %zu allocations", isa_name(isa), threads, allocations() - before);
    }
}

TEST(a_hundred_thousand_runs_keep_nothing) {
  constexpr size_t kMost = 512 * 1024;  // 5 bytes a run: less than a page for every thousand
  for (int threads : {1, 2}) {
    Random r(14);
    Builder b("auto", threads);
    const int x = b.tensor({1, 4, 4, 8}, Dtype::u8, 3), y = b.tensor({1, 4, 4, 40}, Dtype::u8, 5);
    const std::vector<int8_t> weight = r.weights(40 * 9 * 8);
    const std::vector<int32_t> bias(40, 7);
    const std::vector<float> multiplier(40, 0.01f);
    b.input(x, false);
    b.conv2d("conv", x, y, {weight, bias, multiplier, 0, 255}, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 1);
    b.output(y, true);
    const auto program = b.build();
    std::vector<uint8_t> in(4 * 4 * 8, 9), out(4 * 4 * 40);
    const void* inputs[] = {in.data()};
    void* outputs[] = {out.data()};
    for (int i = 0; i < 1000; ++i) program->run(inputs, outputs);
    const size_t resident = resident_bytes(), before = allocations();
    for (int i = 0; i < (threads == 1 ? 100000 : 20000); ++i) program->run(inputs, outputs);
    CHECK(allocations() == before, "%d threads: %zu allocations", threads, allocations() - before);
    CHECK(resident_bytes() <= resident + kMost, "%d threads: %zu more bytes resident", threads,
          resident_bytes() - resident);
  }
}

TEST(a_program_leaves_nothing_behind) {
  constexpr size_t kBuilds = 200;
  constexpr size_t kMost = kBuilds * 1024;  // a network's weights alone are 40 times as much
  auto build = [] {
    Run run;
    run(*network("auto", 2));
  };
  for (int i = 0; i < 20; ++i) build();
  const size_t held = allocated_bytes(), resident = resident_bytes();
  for (size_t i = 0; i < kBuilds; ++i) build();
  CHECK(allocated_bytes() <= held + kMost, "%zu more bytes held", allocated_bytes() - held);
  // A sanitizer keeps what was freed, to find late uses; of leaks it tells at exit.
  if (!kSanitized)
    CHECK(resident_bytes() <= resident + 4 * kMost, "%zu more bytes resident", resident_bytes() - resident);
}

TEST(a_program_serves_several_callers) {
  const auto program = network("auto", 2);
  Run expected;
  expected(*program);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      Run run;
      for (int n = 0; n < 50; ++n) {
        run(*program);
        wrong += run.a != expected.a;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(a_builder_refuses_what_does_not_fit) {
  auto refused = [](auto make) {
    try {
      make();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused([] { Builder("no_such_isa", 1); }));
  CHECK(refused([] { Builder("ref", 0); }));
  CHECK(refused([] { Builder("ref", 1).tensor({1, 0}, Dtype::u8, 0); }));
  CHECK(refused([] { Builder("ref", 1).tensor({1 << 30, 1 << 30}, Dtype::u8, 0); }));
  CHECK(refused([] {
    Builder b("ref", 1);
    b.reshape("r", b.tensor({4}, Dtype::u8, 0), b.tensor({4}, Dtype::u8, 0));  // the input is never produced
  }));
  CHECK(refused([] {
    Builder b("ref", 1);
    const int x = b.tensor({4}, Dtype::u8, 0), y = b.tensor({5}, Dtype::u8, 0);
    b.input(x, false);
    b.reshape("r", x, y);
  }));
  const std::vector<int8_t> weight(32, 1);
  const std::vector<int16_t> short_rest(31, 1), large_rest(32, 129);
  const std::vector<int32_t> bias(4, 0);
  const std::vector<float> multiplier(4, 1.0f);
  for (const auto& rest : {short_rest, large_rest})
    CHECK(refused([&] {
      Builder b("ref", 1);
      const int x = b.tensor({1, 8}, Dtype::u8, 0), y = b.tensor({1, 4}, Dtype::u8, 0);
      b.input(x, false);
      b.linear("l", x, y, {weight, bias, multiplier, 0, 255, rest});
    }));
  CHECK(refused([] {
    Builder b("ref", 1);
    const int x = b.tensor({4}, Dtype::u8, 0), y = b.tensor({4}, Dtype::u8, 0);
    b.input(x, false);
    b.add("a", x, x, y, 1.0f, 0.0f, 0, 255);
  }));
}

TEST(slots_that_live_together_never_overlap) {
  Random r(13);
  for (int round = 0; round < 200; ++round) {
    std::vector<Lifetime> lives(static_cast<size_t>(r.in(1, 60)));
    for (Lifetime& life : lives) {
      life.bytes = static_cast<size_t>(r.in(1, 5000));
      life.first = r.in(0, 30);
      life.last = life.first + r.in(0, 10);
    }
    const size_t total = plan_arena(lives);
    for (const Lifetime& a : lives) {
      CHECK(a.offset % 64 == 0 && a.offset + a.bytes <= total);
      for (const Lifetime& b : lives)
        if (&a != &b && a.first <= b.last && b.first <= a.last)
          CHECK(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset);
    }
  }
}

TEST(a_team_meets_at_every_barrier) {
  for (const auto spin : {std::chrono::microseconds(0), std::chrono::microseconds(200)}) {
    constexpr int kWorkers = 4, kSteps = 50;
    Team team(kWorkers, spin);
    int marks[kSteps][kWorkers] = {};  // plain ints: only the barrier orders them
    struct Context {
      int (*marks)[kWorkers];
      std::atomic<int> wrong{0};
    } context{marks};
    for (int run = 1; run <= 50; ++run)
      team.run(
          [](void* raw, int worker, Team& t) {
            auto& c = *static_cast<Context*>(raw);
            for (int step = 0; step < kSteps; ++step) {
              ++c.marks[step][worker];
              t.barrier();
              for (int other = 1; other < kWorkers; ++other) c.wrong += c.marks[step][other] != c.marks[step][0];
              t.barrier();
            }
          },
          &context);
    CHECK(context.wrong == 0);
    CHECK(marks[kSteps - 1][kWorkers - 1] == 50);
  }
}

}  // namespace int8d::testing
