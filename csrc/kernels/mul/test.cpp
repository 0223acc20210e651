// Every product kernel gives the reference's bytes, for all pairs of bytes and all tails, with no byte too many.
#include "../../testing.h"
#include "mul.h"

namespace int8d::testing {

TEST(mul_kernels_give_the_reference_bytes) {
  Random r(5);
  for (int round = 0; round < 300; ++round) {
    // Pixels of few channels are computed many at a time, those of more than 2048 in parts.
    const int most[3][2] = {{9, 200}, {300, 40}, {3, 5000}}, *size = most[round % 3];
    const size_t pixels = static_cast<size_t>(round < 250 ? r.in(1, size[0]) : 256);
    const size_t channels = static_cast<size_t>(round < 250 ? r.in(1, size[1]) : 256), count = pixels * channels;
    const bool gate = r.in(0, 1);
    Guarded a(count, r.flush()), b(gate ? channels : count, r.flush());
    r.fill(a.data(), count);
    r.fill(b.data(), gate ? channels : count);
    if (round >= 250)  // all pairs
      for (size_t i = 0; i < count; ++i) {
        a.data()[i] = static_cast<uint8_t>(i / 256);
        b.data()[gate ? i % 256 : i] = static_cast<uint8_t>(i % 256);
      }
    MulParams p{r.in(0, 255), r.in(0, 255), r.real(1e-4f, 0.02f), r.in(0, 50), r.in(200, 255), r.in(0, 255)};
    if (r.in(0, 9) == 0) p.multiplier = 1e6f;  // the product leaves int32
    std::vector<uint8_t> expected;
    for (const MulKernel& kernel : mul_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(count, r.flush());
      kernel.run({a.data(), b.data(), out.data(), pixels, channels, gate ? 0 : channels, &p});
      if (kernel.isa == Isa::ref) expected.assign(out.data(), out.data() + count);
      CHECK(std::memcmp(expected.data(), out.data(), count) == 0, "%s, %zu elements", kernel.name, count);
    }
  }
}

}  // namespace int8d::testing
