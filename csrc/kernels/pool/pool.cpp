#include "pool.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace int8d {
namespace {

struct Window {
  int y0, y1, x0, x1;  // taps [y0, y1) x [x0, x1) lie inside the map
};

Window clip(const ConvShape& s, int oy, int ox) {
  auto first = [](int origin, int dilation) { return origin >= 0 ? 0 : (-origin + dilation - 1) / dilation; };
  auto last = [](int origin, int size, int dilation, int taps) {
    return std::min(taps, origin >= size ? 0 : (size - 1 - origin) / dilation + 1);
  };
  const int y = oy * s.sh - s.pad_top, x = ox * s.sw - s.pad_left;
  return {first(y, s.dh), last(y, s.ih, s.dh, s.kh), first(x, s.dw), last(x, s.iw, s.dw, s.kw)};
}

template <typename EachTap>
void for_taps(const PoolCall& call, int n, int oy, int ox, const Window& w, EachTap each) {
  const ConvShape& s = call.shape;
  for (int ky = w.y0; ky < w.y1; ++ky)
    for (int kx = w.x0; kx < w.x1; ++kx)
      each(call.in.at(n, oy * s.sh - s.pad_top + ky * s.dh, ox * s.sw - s.pad_left + kx * s.dw));
}

}  // namespace

void max_pool_u8(const PoolCall& call) {
  const ConvShape& s = call.shape;
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int ox = 0; ox < s.ow; ++ox) {
      const int n = row / s.oh, oy = row % s.oh;
      uint8_t* out = call.out.at(n, oy, ox);
      std::memset(out, 0, static_cast<size_t>(s.oc));  // the least u8: padding never wins
      for_taps(call, n, oy, ox, clip(s, oy, ox), [&](const uint8_t* in) {
        for (int c = 0; c < s.oc; ++c) out[c] = std::max(out[c], in[c]);
      });
    }
}

void avg_pool_u8(const PoolCall& call, const AvgPoolParams& p) {
  const ConvShape& s = call.shape;
  constexpr int kChunk = 256;  // channels whose sums fit on the stack
  std::array<int32_t, kChunk> sum;
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int ox = 0; ox < s.ow; ++ox) {
      const int n = row / s.oh, oy = row % s.oh;
      const Window w = clip(s, oy, ox);
      const int inside = (w.y1 - w.y0) * (w.x1 - w.x0);
      const float m = p.multipliers[p.count_include_pad ? s.kh * s.kw : inside];
      for (int first = 0; first < s.oc; first += kChunk) {
        const int channels = std::min(kChunk, s.oc - first);
        std::fill_n(sum.begin(), channels, -inside * p.in_zp);
        for_taps(call, n, oy, ox, w, [&](const uint8_t* in) {
          for (int c = 0; c < channels; ++c) sum[c] += in[first + c];
        });
        uint8_t* out = call.out.at(n, oy, ox) + first;
        for (int c = 0; c < channels; ++c) out[c] = requantize(sum[c], m, p.lo, p.hi, p.out_zp);
      }
    }
}

}  // namespace int8d
