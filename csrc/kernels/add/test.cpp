// Every sum kernel gives the reference's bytes, for all pairs of bytes and all tails, with no byte too many.
#include "../../testing.h"
#include "add.h"

namespace int8d::testing {

TEST(add_kernels_give_the_reference_bytes) {
  Random r(4);
  for (int round = 0; round < 300; ++round) {
    const size_t count = static_cast<size_t>(round < 200 ? round + 1 : 65536);
    Guarded a(count, r.flush()), b(count, r.flush());
    r.fill(a.data(), count);
    for (size_t i = 0; i < count; ++i) b.data()[i] = static_cast<uint8_t>(i % 256 ^ i / 256);
    if (round >= 200)
      for (size_t i = 0; i < count; ++i) a.data()[i] = static_cast<uint8_t>(i / 256);
    const AddParams p{r.in(0, 255), r.in(0, 255),   r.real(0.01f, 3), r.real(0.01f, 3) * (r.in(0, 1) ? 1 : -1),
                      r.in(0, 50),  r.in(200, 255), r.in(0, 255)};
    std::vector<uint8_t> expected;
    for (const AddKernel& kernel : add_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(count, r.flush());
      kernel.run(a.data(), b.data(), out.data(), count, p);
      if (kernel.isa == Isa::ref) expected.assign(out.data(), out.data() + count);
      CHECK(std::memcmp(expected.data(), out.data(), count) == 0, "%s, %zu elements", kernel.name, count);
    }
  }
}

}  // namespace int8d::testing
