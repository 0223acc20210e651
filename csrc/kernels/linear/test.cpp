// Every linear kernel gives the reference's bytes, reads no further than kOverread, writes only its panels.
#include "../../testing.h"
#include "linear.h"

namespace int8d::testing {

TEST(linear_kernels_give_the_reference_bytes) {
  Random r(3);
  for (int round = 0; round < 300; ++round) {
    const int m = r.in(1, 9), k = r.in(1, 300), n = r.in(1, 200);
    auto w = r.weights(static_cast<size_t>(n) * k);
    const std::vector<int16_t> rest = r.in(0, 2) == 0 ? r.rests(w, r.in(0, 3)) : std::vector<int16_t>();
    std::vector<int32_t> bias(n);
    std::vector<float> multiplier(n);
    for (int32_t& b : bias) b = r.in(-100000, 100000);
    for (float& f : multiplier) f = r.real(1e-5f, 0.02f);
    const ConvDef def{linear_shape(m, k, n), w,   bias, multiplier, r.in(0, 255), r.in(0, 50), r.in(200, 255),
                      r.in(0, 255),          rest};
    const size_t in_bytes = static_cast<size_t>(m) * k, count = static_cast<size_t>(m) * n;
    Guarded input(in_bytes + kOverread, r.flush());
    r.fill(input.data(), in_bytes + kOverread);
    std::vector<uint8_t> expected;
    for (const LinearKernel& kernel : linear_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      const ConvPackedPtr packed = kernel.pack(def);
      Guarded output(count, r.flush());
      std::memset(output.data(), 0xaa, count);
      const int panels = kernel.panels(n), cut = r.in(0, panels);
      kernel.run({packed.get(), input.data(), output.data(), 0, m, cut, panels});
      kernel.run({packed.get(), input.data(), output.data(), 0, m, 0, cut});
      if (kernel.isa == Isa::ref) expected.assign(output.data(), output.data() + count);
      CHECK(std::memcmp(expected.data(), output.data(), count) == 0, "%s, round %d", kernel.name, round);
    }
  }
}

}  // namespace int8d::testing
