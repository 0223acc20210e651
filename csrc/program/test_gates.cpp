// Steps that touch the same bytes of the arena are ordered by a barrier or done by the same worker: networks of gates,
// whose small steps share one barrier, between layers that all workers share and whose halos each of them fills a part
// of. For the bytes of other teams to show what a worker has read too early, the inputs change from run to run.
#include <list>

#include "../testing.h"
#include "program.h"

namespace int8d::testing {
namespace {

constexpr int kSide = 24, kInput = kSide * kSide * 16, kOutput = 10, kMap = 12 * 12 * 32;

// Two gates (pool, linear, table, linear, table, product): one on a map that all workers share, one on a small map.
// Behind each a convolution whose window reaches into the product's halo.
std::unique_ptr<Program> gates(const char* isa, int threads, std::chrono::microseconds spin, bool fused,
                               const Option* option = nullptr, size_t candidate = 0,
                               std::vector<Option>* options = nullptr) {
  Random r(21);
  Builder b(isa, threads, spin);
  std::list<std::tuple<std::vector<int8_t>, std::vector<int32_t>, std::vector<float>>> kept;  // until build()
  auto weights = [&](int oc, int k) {
    kept.emplace_back(r.weights(static_cast<size_t>(oc) * k), std::vector<int32_t>(static_cast<size_t>(oc), 1000),
                      std::vector<float>(static_cast<size_t>(oc), 0.3f / static_cast<float>(k)));
    const auto& [weight, bias, multiplier] = kept.back();
    return WeightsDef{weight, bias, multiplier, 0, 255};
  };
  auto choose = [&](const std::string& name) {
    if (option && option->op == name)
      b.choose(name, option->candidates[candidate]);
    else if (!fused)
      b.choose(name, {"", Split::automatic, false});
  };
  auto conv = [&](const char* name, int in, int ic, int side, int oc, int k, int stride, int groups) {
    choose(name);
    const int out = b.tensor({1, side / stride, side / stride, oc}, Dtype::u8, 20);
    b.conv2d(name, in, out, weights(oc, k * k * ic / groups),
             {{k, k}, {stride, stride}, {1, 1}, {k / 2, k / 2, k / 2, k / 2}}, groups);
    return out;
  };
  std::vector<uint8_t> table(256);
  for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = static_cast<uint8_t>(i * 5 + 3);
  auto gate = [&](const std::string& name, int map, int side) {
    const std::vector<float> multipliers(static_cast<size_t>(side) * side + 1, 2.0f / static_cast<float>(side * side));
    const int mean = b.tensor({1, 1, 1, 32}, Dtype::u8, 20), squeezed = b.tensor({1, 1, 1, 8}, Dtype::u8, 20),
              looked = b.tensor({1, 1, 1, 8}, Dtype::u8, 0), excited = b.tensor({1, 1, 1, 32}, Dtype::u8, 20),
              factor = b.tensor({1, 1, 1, 32}, Dtype::u8, 0), out = b.tensor({1, side, side, 32}, Dtype::u8, 20);
    b.avg_pool2d(name + ".mean", map, mean, {{side, side}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, true, multipliers, 0, 255);
    choose(name + ".squeeze");
    b.linear(name + ".squeeze", mean, squeezed, weights(8, 32));
    b.lut(name + ".squeeze.table", squeezed, looked, table);
    choose(name + ".excite");
    b.linear(name + ".excite", looked, excited, weights(32, 8));
    b.lut(name + ".excite.table", excited, factor, table);
    b.mul(name + ".product", map, factor, out, 0.006f, 0, 255);
    return out;
  };
  const int x = b.tensor({1, kSide, kSide, 16}, Dtype::u8, 128);
  b.input(x, false);
  const int large = gate("large", conv("stem", x, 16, kSide, 32, 3, 1, 1), kSide);
  const int small = gate("small", conv("down", large, 32, kSide, 32, 3, 2, 1), kSide / 2);
  const int body = conv("body", small, 32, kSide / 2, 32, 3, 1, 1), sum = b.tensor({1, 12, 12, 32}, Dtype::u8, 20);
  b.add("sum", small, body, sum, 0.7f, 0.5f, 0, 255);
  const int last = gate("last", conv("depthwise", sum, 32, kSide / 2, 32, 5, 1, 32), kSide / 2);
  const int mean = b.tensor({1, 1, 1, 32}, Dtype::u8, 20), out = b.tensor({1, 1, 1, kOutput}, Dtype::u8, 0);
  const std::vector<float> multipliers(145, 2.0f / 144);
  b.avg_pool2d("mean", last, mean, {{12, 12}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, true, multipliers, 0, 255);
  b.linear("head", mean, out, weights(kOutput, 32));
  b.output(out, false);
  b.output(last, true);
  if (options) *options = b.options();
  return b.build();
}

struct Result {
  std::vector<uint8_t> scores, map;
  bool operator==(const Result&) const = default;
};

struct Inputs {
  std::vector<uint8_t> bytes[2];
  Result expected[2];

  Inputs() {
    Random r(22);
    const auto reference = gates("ref", 1, {}, true);
    for (int i = 0; i < 2; ++i) {
      bytes[i].resize(kInput);
      for (uint8_t& byte : bytes[i]) byte = static_cast<uint8_t>(r.in(0, 255));
      expected[i] = run(*reference, i);
    }
  }
  // The caller's arrays touch guard pages too: at their start or at their end.
  Result run(Program& program, int i) const {
    const Flush flush = i ? Flush::end : Flush::start;
    Guarded in(kInput, flush), scores(kOutput, flush), map(kMap, flush);
    std::memcpy(in.data(), bytes[i].data(), kInput);
    const void* inputs[] = {in.data()};
    void* outputs[] = {scores.data(), map.data()};
    program.run(inputs, outputs);
    return {{scores.data(), scores.data() + kOutput}, {map.data(), map.data() + kMap}};
  }
};

}  // namespace

TEST(gates_give_the_same_bytes_whatever_worker_is_late) {
  const Inputs inputs;
  CHECK(inputs.expected[0].scores != inputs.expected[1].scores && inputs.expected[0].map != inputs.expected[1].map);
  for (Isa isa : supported_isas())
    for (int threads : {3, 4, 5})
      for (const bool fused : {true, false}) {
        const auto program = gates(isa_name(isa), threads, std::chrono::microseconds(fused ? 50 : 0), fused);
        for (int run = 0; run < 10; ++run)
          CHECK(inputs.run(*program, run % 2) == inputs.expected[run % 2], "%s, %d threads, fused: %d, run %d",
                isa_name(isa), threads, fused, run);
      }
}

TEST(no_choice_allocates_at_run_time) {
  const Inputs inputs;
  for (Isa isa : supported_isas())
    for (int threads : {1, 2}) {
      std::vector<Option> options;
      gates(isa_name(isa), threads, {}, true, nullptr, 0, &options);
      for (const Option& option : options)
        for (size_t i = 0; i < option.candidates.size(); ++i) {
          const auto program = gates(isa_name(isa), threads, {}, true, &option, i);
          Result result = inputs.run(*program, 0);
          const void* in[] = {inputs.bytes[1].data()};
          void* out[] = {result.scores.data(), result.map.data()};
          const size_t before = allocations();
          for (int run = 0; run < 3; ++run) program->run(in, out);
          CHECK(allocations() == before, "%s, %d threads, %s as %s: %zu", isa_name(isa), threads, option.op.c_str(),
                option.candidates[i].kernel.c_str(), allocations() - before);
          CHECK(result == inputs.expected[1]);
        }
    }
}

}  // namespace int8d::testing
