// Every softmax gives the reference's bytes, as fp32 and quantized, for all tails, and touches no byte beyond its
// arrays; the reference gives integer shares of an integer sum.
#include <algorithm>
#include <cmath>

#include "../../testing.h"
#include "softmax.h"

namespace int8d::testing {
namespace {

std::vector<int32_t> random_table(Random& r) {
  std::vector<int32_t> table(256);
  const int kind = r.in(0, 4);
  table[0] = kind == 0 ? INT32_MAX : kind == 1 ? 1 : 1 << 23;
  const double scale = r.real(0.001f, 0.3f);
  for (int i = 1; i < 256; ++i) {
    const size_t at = static_cast<size_t>(i);
    if (kind == 2)
      table[at] = r.in(0, table[at - 1]);
    else if (kind < 2)
      table[at] = r.in(0, 3) ? r.in(0, INT32_MAX) : table[0];  // need not fall
    else
      table[at] = static_cast<int32_t>(std::rint(std::exp(-i * scale) * 0x1p23));
  }
  return table;
}

void fill(Random& r, uint8_t* data, size_t count) {
  if (r.in(0, 1)) return r.fill(data, count);
  const int most = r.in(0, 255), least = r.in(0, most);  // the container's ends are never reached
  for (size_t i = 0; i < count; ++i) data[i] = static_cast<uint8_t>(r.in(least, most));
}

}  // namespace

TEST(softmax_kernels_give_the_reference_bytes) {
  Random r(10);
  for (size_t count = 1; count < 600; ++count) {
    const size_t rows = static_cast<size_t>(r.in(1, 3)), total = rows * count;
    Guarded in(total, r.flush());
    fill(r, in.data(), total);
    const std::vector<int32_t> table = random_table(r);
    const bool quantized = r.in(0, 2) > 0;
    const float scale = r.in(0, 1) ? 1.0f / 256 : r.in(0, 3) ? r.real(1e-4f, 0.02f) : 1e-44f;
    const SoftmaxParams p = quantized ? SoftmaxParams(table, scale, r.in(0, 1) * r.in(0, 255)) : SoftmaxParams(table);
    const size_t bytes = total * (quantized ? 1 : sizeof(float));
    std::vector<uint8_t> expected;
    for (const SoftmaxKernel& kernel : softmax_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(bytes, r.flush());
      kernel.run({in.data(), out.data(), rows, count, &p});
      if (kernel.isa == Isa::ref) expected.assign(out.data(), out.data() + bytes);
      CHECK(std::memcmp(expected.data(), out.data(), bytes) == 0, "%s, %zu elements, quantized: %d", kernel.name, count,
            quantized);
    }
    if (quantized) continue;
    for (size_t i = 0; i < total; ++i) {
      const uint8_t* row = in.data() + i / count * count;
      const int most = *std::max_element(row, row + count);
      int64_t sum = 0;
      for (size_t j = 0; j < count; ++j) sum += table[static_cast<size_t>(most - row[j])];
      const double entry = table[static_cast<size_t>(most - in.data()[i])];
      float share;
      std::memcpy(&share, expected.data() + i * sizeof(float), sizeof share);
      CHECK(share == static_cast<float>(entry / static_cast<double>(sum)), "%zu of %zu", i, count);
    }
  }
}

// Quotients that lie halfway between two floats, where the sum has no exact reciprocal: h / 2^33 with h of 25 bits,
// both multiplied by an odd factor.
TEST(softmax_kernels_round_quotients_that_lie_halfway) {
  Random r(34);
  for (int round = 0; round < 100; ++round) {
    const int factor = 2 * r.in(1, 31) + 1;
    std::vector<int32_t> table(256);
    std::vector<uint8_t> in(256);
    for (size_t i = 0; i < 256; ++i) in[i] = static_cast<uint8_t>(i);
    int64_t rest = int64_t{1} << 33;
    for (size_t d = 0; d < 254; ++d) {
      const int h = r.in(1 << 24, (1 << 25) - 1) | 1;
      table[d] = h * factor;
      rest -= h;
    }
    // What is left of the sum: a part of 2^20, and as often as needed 2^20.
    table[254] = static_cast<int32_t>(rest % (1 << 20)) * factor;
    table[255] = factor << 20;
    in.resize(in.size() + static_cast<size_t>(rest >> 20) - 1, 0);
    const SoftmaxParams p(table);
    std::vector<float> expected(in.size()), out(in.size());
    softmax_kernels()[0].run({in.data(), expected.data(), 1, in.size(), &p});
    for (const SoftmaxKernel& kernel : softmax_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      kernel.run({in.data(), out.data(), 1, in.size(), &p});
      CHECK(std::memcmp(expected.data(), out.data(), in.size() * sizeof(float)) == 0, "%s, round %d", kernel.name,
            round);
    }
  }
}

}  // namespace int8d::testing
