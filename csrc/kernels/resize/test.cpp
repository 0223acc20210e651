// Every kernel gives the bytes of the formula in agent/graph.py, which is written out here, for any blends.
#include <algorithm>

#include "../../testing.h"
#include "resize.h"

namespace int8d::testing {
namespace {

std::vector<Blend> blends(Random& r, int count, int extent, bool nearest) {
  std::vector<Blend> made(static_cast<size_t>(count));
  for (Blend& b : made) {
    const int weights[] = {0, 2048, 1, 2047, r.in(0, 2048), r.in(0, 2048)};
    b = {r.in(0, extent - 1), r.in(0, extent - 1), nearest ? 0 : weights[r.in(0, 5)]};
  }
  if (r.in(0, 1)) {  // as they come from a map that grows
    std::sort(made.begin(), made.end(), [](const Blend& a, const Blend& b) { return a.low < b.low; });
    for (Blend& b : made) b.high = std::min(b.low + 1, extent - 1);
  }
  return made;
}

}  // namespace

TEST(resize_kernels_give_the_bytes_of_the_formula) {
  Random r(32);
  for (int round = 0; round < 400; ++round) {
    const int n = r.in(1, 2), ih = r.in(1, 9), iw = r.in(1, 9), oh = r.in(1, 20), ow = r.in(1, 20), c = r.in(1, 70);
    const bool nearest = round % 5 == 0;
    const std::vector<Blend> rows = blends(r, oh, ih, nearest), columns = blends(r, ow, iw, nearest);
    const size_t in_bytes = static_cast<size_t>(n) * ih * iw * c, count = static_cast<size_t>(n) * oh * ow * c;
    Guarded in(in_bytes + kOverread, r.flush());
    r.fill(in.data(), in_bytes + kOverread);
    if (round % 7 == 0) std::memset(in.data(), 255, in_bytes);  // the largest sums
    const ptrdiff_t in_row = static_cast<ptrdiff_t>(iw) * c, out_row = static_cast<ptrdiff_t>(ow) * c;
    const View from{in.data(), in_row * ih, in_row, c};
    std::vector<uint8_t> expected;
    for (int i = 0; i < n; ++i)
      for (const Blend& y : rows)
        for (const Blend& x : columns)
          for (int k = 0; k < c; ++k) {
            auto row = [&](int at) {
              return (2048 - x.weight) * int64_t{from.at(i, at, x.low)[k]} + x.weight * from.at(i, at, x.high)[k];
            };
            const int64_t sum = (2048 - y.weight) * row(y.low) + y.weight * row(y.high) + (1 << 21);
            expected.push_back(static_cast<uint8_t>(sum >> 22));
          }
    for (const ResizeKernel& kernel : resize_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded out(count, r.flush()), scratch(2 * static_cast<size_t>(ow) * c * sizeof(int32_t), Flush::end);
      std::memset(out.data(), 0xaa, count);
      ResizeCall call{from, {out.data(), out_row * oh, out_row, c}, oh, ow, c, rows, columns, nearest, nullptr, 0, 0};
      call.scratch = reinterpret_cast<int32_t*>(scratch.data());
      const int cut = r.in(0, n * oh);
      for (const auto& [begin, end] : {std::pair{0, cut}, std::pair{cut, n * oh}}) {
        call.row_begin = begin, call.row_end = end;
        resize2d(kernel, call);
      }
      CHECK(std::memcmp(expected.data(), out.data(), count) == 0, "%s, round %d", kernel.name, round);
    }
  }
}

}  // namespace int8d::testing
