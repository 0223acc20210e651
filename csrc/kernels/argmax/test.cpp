// Every kernel finds the first of the largest, whatever stands behind a row.
#include <algorithm>

#include "../../testing.h"
#include "../common/view.h"
#include "argmax.h"

namespace int8d::testing {

TEST(argmax_kernels_find_the_first_of_the_largest) {
  Random r(33);
  for (size_t count = 1; count < 300; ++count) {
    const size_t rows = static_cast<size_t>(r.in(1, 5));
    Guarded in(rows * count + kOverread, r.flush());
    r.fill(in.data(), rows * count + kOverread);
    for (size_t i = 0; i < rows * count; ++i) in.data()[i] &= count % 3 ? 0xff : 0x81;  // several are the largest
    if (count % 4 == 0) std::memset(in.data() + rows * count, 0xff, kOverread);
    if (count % 16 == 1) std::memset(in.data(), 0, rows * count);
    for (const ArgMaxKernel& kernel : argmax_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(rows * sizeof(int32_t), r.flush());
      kernel.run(in.data(), rows, count, reinterpret_cast<int32_t*>(out.data()));
      for (size_t row = 0; row < rows; ++row) {
        const uint8_t* first = in.data() + row * count;
        const auto expected = static_cast<int32_t>(std::max_element(first, first + count) - first);
        const int32_t got = reinterpret_cast<const int32_t*>(out.data())[row];
        CHECK(got == expected, "%s, %zu elements, row %zu: %d, not %d", kernel.name, count, row, got, expected);
      }
    }
  }
}

}  // namespace int8d::testing
