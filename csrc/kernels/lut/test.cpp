// Every look-up gives the reference's bytes, for all tails, with no byte too many.
#include "../../testing.h"
#include "lut.h"

namespace int8d::testing {

TEST(lut_kernels_give_the_reference_bytes) {
  Random r(7);
  for (size_t count = 1; count < 400; ++count) {
    Guarded in(count, r.flush()), table(256);
    r.fill(table.data(), 256);
    for (size_t i = 0; i < count; ++i) in.data()[i] = static_cast<uint8_t>(count > 256 ? i : r.in(0, 255));
    std::vector<uint8_t> expected;
    for (const LutKernel& kernel : lut_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(count, r.flush());
      kernel.run(in.data(), out.data(), count, table.data());
      if (kernel.isa == Isa::ref) expected.assign(out.data(), out.data() + count);
      CHECK(std::memcmp(expected.data(), out.data(), count) == 0, "%s, %zu elements", kernel.name, count);
    }
  }
}

}  // namespace int8d::testing
