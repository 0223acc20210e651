// Every pool gives the reference's bytes, reads no further than kOverread, writes only its rows and channels.
#include "../../testing.h"
#include "pool.h"

namespace int8d::testing {

// Channels of maps whose loads run over several pixels, and of one whose do not.
constexpr int kRuns[] = {8, 16, 20, 32, 64, 72, 96, 144, 240};

TEST(pool_kernels_give_the_reference_bytes) {
  Random r(6);
  for (int round = 0; round < 300; ++round) {
    ConvShape s;
    s.batch = r.in(1, 2);
    s.ic = s.oc = r.in(1, 150);
    s.kh = r.in(1, 4), s.kw = r.in(1, 4), s.sh = r.in(1, 3), s.sw = r.in(1, 3);
    if (round % 10 == 0) s.kh = s.kw = 20;  // more taps than a word's sum holds
    s.pad_top = r.in(0, s.kh - 1), s.pad_left = r.in(0, s.kw - 1);
    s.oh = r.in(1, 5), s.ow = r.in(1, 9);
    s.ih = std::max(1, (s.oh - 1) * s.sh + s.kh - s.pad_top - r.in(0, s.kh - 1));
    s.iw = std::max(1, (s.ow - 1) * s.sw + s.kw - s.pad_left - r.in(0, s.kw - 1));
    if (round % 10 == 5) {  // a whole map, or nearly
      s.oh = s.ow = s.sh = s.sw = 1, s.pad_top = s.pad_left = 0;
      s.ic = s.oc = kRuns[r.in(0, std::size(kRuns) - 1)];
      s.ih = s.kh = r.in(7, 80), s.kw = r.in(7, 80), s.iw = s.kw + r.in(0, 1);
    }
    const size_t in_bytes = static_cast<size_t>(s.batch) * s.ih * s.iw * s.ic;
    Guarded input(in_bytes + kOverread, r.flush());
    r.fill(input.data(), in_bytes + kOverread);
    if (round % 20 == 5) std::memset(input.data(), 255, in_bytes);  // the largest sums
    std::vector<float> multipliers(static_cast<size_t>(s.kh) * s.kw + 1);
    for (size_t i = 0; i < multipliers.size(); ++i)
      multipliers[i] = r.real(0.2f, 2) / static_cast<float>(std::max<size_t>(1, i));
    const AvgPoolParams average{r.in(0, 255), r.in(0, 50),     r.in(200, 255),
                                r.in(0, 255), r.in(0, 1) == 1, multipliers.data()};
    const ptrdiff_t in_row = static_cast<ptrdiff_t>(s.iw) * s.ic, out_row = static_cast<ptrdiff_t>(s.ow) * s.oc;
    const size_t count = static_cast<size_t>(s.batch) * s.oh * out_row;
    const int rows = s.batch * s.oh, row = r.in(0, rows), channel = r.in(0, 1) ? s.oc : r.in(0, s.oc);
    for (const bool max : {true, false}) {
      std::vector<uint8_t> expected;
      for (const PoolKernel& kernel : pool_kernels()) {
        if (!isa_supported(kernel.isa)) continue;
        Guarded output(count, r.flush());
        std::memset(output.data(), 0xaa, count);
        const View in{input.data(), in_row * s.ih, in_row, s.ic}, out{output.data(), out_row * s.oh, out_row, s.oc};
        const int cuts[4][4] = {
            {0, row, 0, channel}, {row, rows, channel, s.oc}, {row, rows, 0, channel}, {0, row, channel, s.oc}};
        for (const auto& cut : cuts)
          (max ? kernel.max : kernel.avg)({s, in, out, &average, cut[0], cut[1], cut[2], cut[3]});
        if (kernel.isa == Isa::ref) expected.assign(output.data(), output.data() + count);
        CHECK(std::memcmp(expected.data(), output.data(), count) == 0, "%s, round %d",
              max ? kernel.max_name : kernel.avg_name, round);
      }
    }
  }
}

}  // namespace int8d::testing
