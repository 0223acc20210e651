// Every depthwise kernel gives the reference's bytes, reads no further than kOverread, writes only its rows.
#include <map>
#include <string>

#include "../../testing.h"
#include "depthwise.h"

namespace int8d::testing {

// Channels whose last ones share a register with those of other pixels.
constexpr int kTails[] = {8, 16, 24, 32, 72, 80, 96, 144, 240};

TEST(depthwise_kernels_give_the_reference_bytes) {
  std::map<std::string, int> rounds;  // by kernel
  Random r(2);
  for (int round = 0; round < 600; ++round) {
    ConvShape s;
    s.batch = r.in(1, 2);
    s.groups = s.ic = s.oc = r.in(1, 150);
    s.kh = r.in(1, 5), s.kw = r.in(1, 5), s.sh = r.in(1, 2), s.sw = r.in(1, 2), s.dh = r.in(1, 2), s.dw = r.in(1, 2);
    if (r.in(0, 1)) s.kh = s.kw = r.in(0, 1) ? 3 : 5, s.sw = s.sh, s.dh = s.dw = 1;
    if (r.in(0, 2) == 0) s.groups = s.ic = s.oc = kTails[r.in(0, std::size(kTails) - 1)];
    s.oh = r.in(1, 7), s.ow = r.in(0, 9) ? r.in(1, 15) : r.in(50, 130);
    s.ih = (s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1;
    s.iw = (s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 1;
    auto w = r.weights(static_cast<size_t>(s.oc) * s.kh * s.kw);
    const std::vector<int16_t> rest = r.in(0, 2) == 0 ? r.rests(w, r.in(0, 3)) : std::vector<int16_t>();
    std::vector<int32_t> bias(s.oc);
    std::vector<float> multiplier(s.oc);
    for (int32_t& b : bias) b = r.in(-10000, 10000);
    for (float& m : multiplier) m = r.real(1e-4f, 0.1f);
    if (r.in(0, 9) == 0) multiplier[0] = 1e6f;  // the product leaves int32
    Guarded table(256);
    r.fill(table.data(), 256);
    const bool looked_up = r.in(0, 2) == 0;
    const ConvDef def{s, w, bias, multiplier, r.in(0, 255), r.in(0, 50), r.in(200, 255), r.in(0, 255), rest};
    const size_t in_bytes = static_cast<size_t>(s.batch) * s.ih * s.iw * s.ic;
    Guarded input(in_bytes + kOverread, r.flush());
    r.fill(input.data(), in_bytes + kOverread);
    const ptrdiff_t in_row = static_cast<ptrdiff_t>(s.iw) * s.ic, out_row = static_cast<ptrdiff_t>(s.ow) * s.oc;
    const size_t count = static_cast<size_t>(s.batch) * s.oh * out_row;
    std::vector<uint8_t> expected;
    for (const DepthwiseKernel& kernel : depthwise_kernels()) {
      if (!isa_supported(kernel.isa) || !kernel.accepts(s)) continue;
      DepthwisePackedPtr packed = kernel.pack(def);
      if (!packed) continue;
      if (r.in(0, 1)) {  // what was packed for another batch, which is gone
        ConvDef other = def;
        other.shape.batch += r.in(1, 4);
        packed = packed_again(*kernel.pack(other), def);
        CHECK(packed != nullptr, "%s, round %d: not shared", kernel.name, round);
      }
      Guarded output(count, r.flush());
      std::memset(output.data(), 0xaa, count);
      DepthwiseCall call{packed.get(),
                         View{input.data(), in_row * s.ih, in_row, s.ic},
                         View{output.data(), out_row * s.oh, out_row, s.oc},
                         looked_up ? table.data() : nullptr,
                         0,
                         0};
      const int rows = s.batch * s.oh, cut = r.in(0, rows);
      call.row_begin = cut, call.row_end = rows;
      kernel.run(call);
      call.row_begin = 0, call.row_end = cut;
      kernel.run(call);
      if (kernel.isa == Isa::ref) expected.assign(output.data(), output.data() + count);
      CHECK(std::memcmp(expected.data(), output.data(), count) == 0, "%s, round %d", kernel.name, round);
      ++rounds[kernel.name];
    }
  }
  for (const DepthwiseKernel& kernel : depthwise_kernels())
    CHECK(!isa_supported(kernel.isa) || rounds[kernel.name] >= 10, "%s: %d rounds", kernel.name, rounds[kernel.name]);
}

}  // namespace int8d::testing
