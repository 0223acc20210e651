// Every layer normalization gives the reference's bytes, for all tails and the longest rows, with no byte too many; and
// the reference gives the formula's, zero point and all.
#include <cmath>

#include "../../testing.h"
#include "layer_norm.h"

namespace int8d::testing {
namespace {

// As agent.graph.LayerNorm states it, with v = q - zp_in.
uint8_t formula(const uint8_t* in, size_t n, size_t i, int zp_in, const LayerNormParams& p) {
  int64_t s = 0, squares = 0;
  for (size_t j = 0; j < n; ++j) {
    s += in[j] - zp_in;
    squares += int64_t{in[j] - zp_in} * (in[j] - zp_in);
  }
  const double d = static_cast<double>(static_cast<int64_t>(n) * squares - s * s);
  const float r = static_cast<float>(1 / std::sqrt(d + p.epsilon));
  const float t = static_cast<float>(static_cast<int64_t>(n) * (in[i] - zp_in) - s) * r;
  const float scaled = t * p.gamma[i], sum = scaled + p.beta[i];
  const double q = std::nearbyint(static_cast<double>(sum)) + p.zp;
  return static_cast<uint8_t>(q < p.lo ? p.lo : q > p.hi ? p.hi : q);
}

}  // namespace

TEST(layer_norm_kernels_give_the_reference_bytes) {
  Random r(33);
  for (int round = 0; round < 400; ++round) {
    const bool longest = round >= 396;
    const size_t n = longest ? kMostNormalized - static_cast<size_t>(round % 2) : static_cast<size_t>(round + 1),
                 rows = longest ? 1 : static_cast<size_t>(r.in(1, 3));
    const Flush flush = r.flush();
    Guarded in(rows * n, r.flush()), gamma(n * sizeof(float), flush), beta(n * sizeof(float), flush);
    r.fill(in.data(), rows * n);
    if (longest) std::memset(in.data(), 255, rows * n - static_cast<size_t>(round % 4 / 2));
    if (!longest && r.in(0, 5) == 0) std::memset(in.data(), r.in(0, 255), n);  // no variance
    float *g = reinterpret_cast<float*>(gamma.data()), *b = reinterpret_cast<float*>(beta.data());
    const float extremes[] = {0.0f, -0.0f, 1e30f, -1e30f, 1e-30f, 0.5f};
    for (size_t i = 0; i < n; ++i) {
      g[i] = r.in(0, 20) ? r.real(-100, 100) : extremes[r.in(0, 5)];
      b[i] = r.in(0, 20) ? r.real(-100, 100) : extremes[r.in(0, 5)];
    }
    const int lo = r.in(0, 100), hi = r.in(lo, 255);
    const double epsilons[] = {kLeastEpsilon, 1e-5, 1.0, 1e6, 1e40};
    const LayerNormParams p{epsilons[r.in(0, 4)], g, b, lo, hi, r.in(0, 255)};
    std::vector<uint8_t> expected;
    for (const LayerNormKernel& kernel : layer_norm_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(rows * n, r.flush());
      kernel.run({in.data(), out.data(), rows, n, &p});
      if (kernel.isa == Isa::ref) {
        expected.assign(out.data(), out.data() + rows * n);
        for (const size_t i : {size_t{0}, n / 2, n - 1})
          CHECK(expected[i] == formula(in.data(), n, i, r.in(0, 255), p), "%zu of %zu", i, n);
      }
      CHECK(std::memcmp(expected.data(), out.data(), rows * n) == 0, "%s, %zu elements", kernel.name, n);
    }
  }
}

}  // namespace int8d::testing
