// Every convolution kernel gives the reference's bytes, reads no further than kOverread, writes only its range.
#include <map>
#include <string>

#include "../../testing.h"
#include "conv.h"

namespace int8d::testing {
namespace {

ConvShape random_shape(Random& r, bool depthwise) {
  ConvShape s;
  s.batch = r.in(1, 2);
  s.kh = r.in(1, 5), s.kw = r.in(1, 5);
  s.sh = r.in(1, 2), s.sw = r.in(1, 2);
  s.dh = r.in(1, 4) == 1 ? 2 : 1, s.dw = r.in(1, 4) == 1 ? 2 : 1;
  s.groups = r.in(1, 5) == 1 ? r.in(2, 3) : 1;
  s.ic = s.groups * r.in(1, 37), s.oc = s.groups * r.in(1, 70);
  s.oh = r.in(1, 9), s.ow = r.in(1, 33);
  s.pad_top = r.in(0, s.kh - 1), s.pad_left = r.in(0, s.kw - 1);
  if (r.in(0, 2) == 0) {  // what Winograd takes
    s.kh = s.kw = 3, s.sh = s.sw = s.dh = s.dw = s.groups = 1;
    auto side = [&](int most) {
      const int length = r.in(2, most);
      return length - (length % 4 == 1);
    };
    s.ic = 32 * r.in(1, 3), s.oh = side(16), s.ow = side(24);
    if (r.in(0, 7) == 0)  // few tiles, large weights
      s.batch = 1, s.ic = 64 * r.in(5, 7), s.oc = r.in(60, 90), s.oh = side(12), s.ow = side(12);
    s.pad_top = r.in(0, 1), s.pad_left = r.in(0, 1);
  } else if (r.in(0, 19) == 0) {  // so many steps that their rests may be read in spans
    s = ConvShape{};
    s.ic = r.in(2080, 2400), s.oc = r.in(1, 20), s.oh = r.in(1, 3), s.ow = r.in(1, 20);
  }
  if (depthwise) s.groups = s.oc = s.ic = r.in(1, 150);
  s.ih = std::max(1, (s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1 - s.pad_top);
  s.iw = std::max(1, (s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 1 - s.pad_left);
  return s;
}

}  // namespace

TEST(conv_kernels_give_the_reference_bytes) {
  std::map<std::string, int> rounds, with_rest, shared;  // by kernel
  Random r(1);
  for (int round = 0; round < 300; ++round) {
    const ConvShape s = random_shape(r, false);
    auto w = r.weights(static_cast<size_t>(s.oc) * s.kh * s.kw * (s.ic / s.groups));
    // So many that Winograd couldn't prove its sums; and at times so small that few pairs saturate.
    if (s.ic > 255 || r.in(0, 2) == 0)
      for (int8_t& v : w) v /= r.in(0, 20) ? 3 : 1;
    const std::vector<int16_t> rest =
        r.in(0, 2) == 0 ? r.rests(w, s.ic > 2000 ? 3 : r.in(0, 3)) : std::vector<int16_t>();
    std::vector<int32_t> bias(s.oc);
    std::vector<float> multiplier(s.oc);
    for (int32_t& b : bias) b = r.in(-100000, 100000);
    for (float& m : multiplier) m = r.real(1e-5f, 0.02f);
    if (r.in(0, 9) == 0) multiplier[0] = 1e6f;  // the product leaves int32
    Guarded table(256);
    r.fill(table.data(), 256);
    const int lo = r.in(0, 100), hi = r.in(lo, 255);
    const ConvDef def{s, w, bias, multiplier, r.in(0, 255), lo, hi, r.in(0, 255), rest};
    // The map with its halo: its last byte kOverread before a page that can't be read, or its first behind one.
    const int rows = (s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1, columns = (s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 1;
    const size_t in_bytes = static_cast<size_t>(s.batch) * rows * columns * s.ic;
    Guarded input(in_bytes + kOverread, r.flush());
    r.fill(input.data(), in_bytes + kOverread);
    const View in{input.data() + (static_cast<ptrdiff_t>(s.pad_top) * columns + s.pad_left) * s.ic,
                  static_cast<ptrdiff_t>(rows) * columns * s.ic, static_cast<ptrdiff_t>(columns) * s.ic, s.ic};
    // The output's and the residual's maps may have halos of their own: whole rows below, pixels to the right.
    const int below = r.in(0, 1), right = r.in(0, 2), residual_right = r.in(0, 1) ? right : r.in(0, 2);
    auto bytes = [&](int halo) { return static_cast<size_t>(s.batch) * (s.oh + below) * (s.ow + halo) * s.oc; };
    const size_t count = bytes(right), residual_count = bytes(residual_right) + kOverread;
    std::vector<uint8_t> expected;
    Guarded residual(residual_count, r.flush());
    r.fill(residual.data(), residual_count);
    const AddParams add{def.out_zp, r.in(0, 255), r.real(0.1f, 2), r.real(-2, 2), r.in(0, 20), r.in(200, 255), 77};
    const bool summed = r.in(0, 1), looked_up = r.in(0, 2) == 0;
    auto view = [&](uint8_t* data, int halo) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(s.ow + halo) * s.oc;
      return View{data, row * (s.oh + below), row, s.oc};
    };
    for (const ConvKernel& kernel : conv_kernels()) {
      if (!isa_supported(kernel.isa) || !kernel.accepts(s)) continue;
      ConvPackedPtr packed = kernel.pack(def);
      if (!packed) continue;
      if (r.in(0, 1)) {  // what was packed for another batch, which is gone
        ConvDef other = def;
        other.shape.batch += r.in(1, 40);
        const ConvPackedPtr first = kernel.pack(other);
        if (ConvPackedPtr again = packed_again(*first, def)) {
          CHECK(conv_packed_weights(*again).data() == conv_packed_weights(*first).data(), "%s, round %d: not shared",
                kernel.name, round);
          packed = std::move(again);
          ++shared[kernel.name];
        }
      }
      Guarded scratch((kernel.scratch(s) + 63) / 64 * 64), output(count, r.flush());  // workers' lie side by side
      std::memset(output.data(), 0xaa, count);
      ConvCall call;
      call.packed = packed.get();
      call.in = in;
      call.out = view(output.data(), right);
      call.residual = view(residual.data(), residual_right);
      call.add = summed ? &add : nullptr;
      call.table = looked_up ? table.data() : nullptr;
      call.scratch = scratch.data();
      // In pieces, as threads would: each must keep to its own.
      const int total_rows = kernel.rows(s), panels = kernel.panels(s);
      const int row = r.in(0, total_rows), panel = r.in(0, panels);
      const int cuts[4][4] = {
          {0, row, 0, panel}, {row, total_rows, panel, panels}, {row, total_rows, 0, panel}, {0, row, panel, panels}};
      for (const auto& cut : cuts) {
        call.row_begin = cut[0], call.row_end = cut[1], call.panel_begin = cut[2], call.panel_end = cut[3];
        if (cut[0] < cut[1] && cut[2] < cut[3]) kernel.run(call);
      }
      if (kernel.isa == Isa::ref) expected.assign(output.data(), output.data() + count);
      CHECK(std::memcmp(expected.data(), output.data(), count) == 0, "%s, round %d", kernel.name, round);
      ++rounds[kernel.name];
      with_rest[kernel.name] += !rest.empty();
    }
  }
  for (const ConvKernel& kernel : conv_kernels()) {
    const bool winograd = std::string(kernel.name).find("winograd") != std::string::npos;
    CHECK(!isa_supported(kernel.isa) || rounds[kernel.name] >= 10, "%s: %d rounds", kernel.name, rounds[kernel.name]);
    CHECK(!isa_supported(kernel.isa) || shared[kernel.name] >= 3, "%s: %d rounds of shared weights", kernel.name,
          shared[kernel.name]);
    CHECK(!isa_supported(kernel.isa) || winograd == (with_rest[kernel.name] == 0), "%s: %d rounds with a rest",
          kernel.name, with_rest[kernel.name]);
  }
}

}  // namespace int8d::testing
