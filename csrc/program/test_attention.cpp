// A block of attention, as in a vision transformer: the same bytes on every instruction set, for every choice and team,
// without an allocation; linear layers with many rows are convolutions, whose sums and tables are fused.
#include <list>

#include "../testing.h"
#include "program.h"

namespace int8d::testing {
namespace {

constexpr int kTokens = 21, kWidth = 48, kHeads = 3, kHidden = 80;

struct Block {
  std::unique_ptr<Program> program;
  std::vector<Option> options;

  Block(const char* isa, int threads, const std::string& name = {}, const Choice& choice = {}) {
    Random r(41);
    Builder b(isa, threads);
    if (!name.empty()) b.choose(name, choice);
    std::list<std::tuple<std::vector<int8_t>, std::vector<int32_t>, std::vector<float>>> kept;  // until build()
    auto linear = [&](const char* op, int in, int k, int n) {
      kept.emplace_back(r.weights(static_cast<size_t>(n) * k), std::vector<int32_t>(static_cast<size_t>(n), 1000),
                        std::vector<float>(static_cast<size_t>(n), 0.005f));
      const auto& [weight, bias, multiplier] = kept.back();
      const int out = b.tensor({1, kTokens, n}, Dtype::u8, 120);
      b.linear(op, in, out, {weight, bias, multiplier, 0, 255});
      return out;
    };
    const std::vector<float> gamma(kWidth, 35), beta(kWidth, -3);
    std::vector<int32_t> exponentials(256);
    for (int i = 0; i < 256; ++i) exponentials[static_cast<size_t>(i)] = (1 << 23) >> (i / 16);
    std::vector<uint8_t> table(256);
    for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = static_cast<uint8_t>(i * 5 + 3);
    const std::vector<int64_t> whole{1, kTokens, kWidth}, split{1, kHeads, kTokens, kWidth / kHeads};

    const int x = b.tensor(whole, Dtype::u8, 128), normed = b.tensor(whole, Dtype::u8, 100);
    b.input(x, false);
    b.layer_norm("norm", x, normed, 0.5, gamma, beta, 0, 255);
    int parts[3];
    const char* names[] = {"query", "key", "value"};
    for (int i = 0; i < 3; ++i) {
      const int flat = linear(names[i], normed, kWidth, kWidth);
      parts[i] = b.tensor(split, Dtype::u8, 120);
      b.reshape(std::string(names[i]) + ".heads", flat, parts[i]);
    }
    const int scores = b.tensor({1, kHeads, kTokens, kTokens}, Dtype::u8, 130),
              shares = b.tensor({1, kHeads, kTokens, kTokens}, Dtype::u8, 0), mixed = b.tensor(split, Dtype::u8, 125),
              joined = b.tensor(whole, Dtype::u8, 125);
    b.matmul("scores", parts[0], parts[1], scores, true, 0.002f, 0, 255);
    b.softmax("shares", scores, shares, exponentials, 1.0f / 256);
    b.matmul("mixed", shares, parts[2], mixed, false, 0.01f, 0, 255);
    b.reshape("joined", mixed, joined);
    const int sum = b.tensor(whole, Dtype::u8, 128);
    b.add("sum", linear("projected", joined, kWidth, kWidth), x, sum, 0.8f, 0.7f, 0, 255);
    const int looked_up = b.tensor({1, kTokens, kHidden}, Dtype::u8, 110);
    b.lut("gelu", linear("hidden", sum, kWidth, kHidden), looked_up, table);
    const int out = b.tensor(whole, Dtype::u8, 128);
    b.add("out", sum, linear("narrowed", looked_up, kHidden, kWidth), out, 0.6f, 0.9f, 0, 255);
    const int shares_out = b.tensor(whole, Dtype::f32, 0);
    b.softmax("last", out, shares_out, exponentials, 0);
    b.output(out, false);
    b.output(shares_out, false);
    options = b.options();
    program = b.build();
  }
};

struct Result {
  std::vector<uint8_t> bytes = std::vector<uint8_t>(kTokens * kWidth);
  std::vector<float> shares = std::vector<float>(kTokens * kWidth);
  bool operator==(const Result&) const = default;

  void run(Program& program) {
    static const std::vector<uint8_t> in = [] {
      std::vector<uint8_t> values(kTokens * kWidth);
      Random r(42);
      for (uint8_t& v : values) v = static_cast<uint8_t>(r.in(0, 255));
      return values;
    }();
    const void* inputs[] = {in.data()};
    void* outputs[] = {bytes.data(), shares.data()};
    program.run(inputs, outputs);
  }
};

}  // namespace

TEST(attention_gives_the_same_bytes_on_any_instruction_set_and_team) {
  Result expected;
  expected.run(*Block("ref", 1).program);
  for (Isa isa : supported_isas())
    for (int threads : {1, 2, 3, 5}) {
      const Block block(isa_name(isa), threads);
      Result result;
      result.run(*block.program);
      CHECK(result == expected, "%s, %d threads", isa_name(isa), threads);
      const size_t before = allocations();
      for (int i = 0; i < 5; ++i) result.run(*block.program);
      CHECK(allocations() == before, "%s, %d threads: %zu allocations", isa_name(isa), threads, allocations() - before);
      CHECK(result == expected, "%s, %d threads, again", isa_name(isa), threads);
    }
}

TEST(every_choice_for_attention_gives_the_same_bytes) {
  Result expected;
  expected.run(*Block("ref", 1).program);
  for (Isa isa : supported_isas())
    for (int threads : {1, 2})
      for (const Option& option : Block(isa_name(isa), threads).options)
        for (const Choice& choice : option.candidates) {
          Result result;
          result.run(*Block(isa_name(isa), threads, option.op, choice).program);
          CHECK(result == expected, "%s, %d threads: %s as %s, %s, %d", isa_name(isa), threads, option.op.c_str(),
                choice.kernel.c_str(), split_name(choice.split), choice.fused);
        }
}

TEST(linear_layers_with_many_rows_take_over_tables_and_sums) {
  const Block block("auto", 1);
  int fused = 0;
  for (const StepInfo& step : block.program->steps()) fused += step.names.size() == 2;
  CHECK(fused == 3, "%d", fused);
}

TEST(a_builder_refuses_attention_that_does_not_fit) {
  auto refused = [](auto make) {
    Builder b("ref", 1);
    const int x = b.tensor({2, 3, 4}, Dtype::u8, 0);
    b.input(x, false);
    try {
      make(b, x);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  const std::vector<float> four(4, 1.0f), three(3, 1.0f);
  const std::vector<int32_t> table(256, 1);
  auto u8 = [](Builder& b, const std::vector<int64_t>& shape) { return b.tensor(shape, Dtype::u8, 0); };
  auto matmul = [&](bool transpose_b, const std::vector<int64_t>& out, int hi = 255) {
    return [=](Builder& b, int x) { b.matmul("m", x, x, u8(b, out), transpose_b, 1.0f, 0, hi); };
  };
  CHECK(!refused(matmul(true, {2, 3, 3})));
  CHECK(refused(matmul(true, {2, 3, 4})));
  CHECK(refused(matmul(false, {2, 3, 4})));
  CHECK(refused(matmul(true, {2, 3, 3}, 256)));
  CHECK(refused([](Builder& b, int) {  // 255 * 255 * 33026 leaves int32
    const int y = b.tensor({1, 33026}, Dtype::u8, 0);
    b.input(y, false);
    b.matmul("m", y, y, b.tensor({1, 1}, Dtype::u8, 0), true, 1.0f, 0, 255);
  }));
  auto norm = [&](double epsilon, const std::vector<float>& gamma) {
    return [&, epsilon](Builder& b, int x) { b.layer_norm("n", x, u8(b, {2, 3, 4}), epsilon, gamma, four, 0, 255); };
  };
  CHECK(!refused(norm(1, four)));
  CHECK(refused(norm(1, three)));
  CHECK(refused(norm(1e-71, four)));
  CHECK(refused([&](Builder& b, int x) { b.softmax("s", x, u8(b, {2, 3, 4}), table, 0); }));
  CHECK(!refused([&](Builder& b, int x) { b.softmax("s", x, u8(b, {2, 3, 4}), table, 0.1f); }));
}

}  // namespace int8d::testing
