// A window clipped to its map, and the kernels of kernels.inc.
#pragma once
#include <algorithm>

#include "pool.h"

namespace int8d {

struct Window {
  int y0, y1, x0, x1;  // taps [y0, y1) x [x0, x1) lie inside the map
  int inside() const { return (y1 - y0) * (x1 - x0); }
};

inline bool inside(const ConvShape& s, int oy, int ox) {
  const int y = oy * s.sh - s.pad_top, x = ox * s.sw - s.pad_left;
  return y >= 0 && x >= 0 && y + (s.kh - 1) * s.dh < s.ih && x + (s.kw - 1) * s.dw < s.iw;
}

inline Window clip(const ConvShape& s, int oy, int ox) {
  auto first = [](int origin, int dilation) { return origin >= 0 ? 0 : (-origin + dilation - 1) / dilation; };
  auto last = [](int origin, int size, int dilation, int taps) {
    return std::min(taps, origin >= size ? 0 : (size - 1 - origin) / dilation + 1);
  };
  const int y = oy * s.sh - s.pad_top, x = ox * s.sw - s.pad_left;
  return {first(y, s.dh), last(y, s.ih, s.dh, s.kh), first(x, s.dw), last(x, s.iw, s.dw, s.kw)};
}

// each(tap) with the address of every tap's first channel.
template <typename Each>
void for_taps(const PoolCall& call, int n, int oy, int ox, const Window& w, Each each) {
  const ConvShape& s = call.shape;
  const uint8_t* row = call.in.at(n, oy * s.sh - s.pad_top + w.y0 * s.dh, ox * s.sw - s.pad_left + w.x0 * s.dw);
  for (int ky = w.y0; ky < w.y1; ++ky, row += s.dh * call.in.row) {
    const uint8_t* tap = row;
    for (int kx = w.x0; kx < w.x1; ++kx, tap += s.dw * call.in.pixel) each(tap);
  }
}

// each(n, oy, ox) for every pixel of the call's rows.
template <typename Each>
void for_pixels(const PoolCall& call, Each each) {
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const int n = row / call.shape.oh, oy = row % call.shape.oh;
    for (int ox = 0; ox < call.shape.ow; ++ox) each(n, oy, ox);
  }
}

inline float multiplier(const PoolCall& call, const Window& w) {
  const AvgPoolParams& p = *call.average;
  return p.multipliers[p.count_include_pad ? call.shape.kh * call.shape.kw : w.inside()];
}

#define INT8D_POOL(isa)                    \
  void max_pool_u8_##isa(const PoolCall&); \
  void avg_pool_u8_##isa(const PoolCall&);
#include "kernels.inc"
#undef INT8D_POOL

}  // namespace int8d
