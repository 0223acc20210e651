// The scalar reference: every other kernel gives these bytes.
#include "window.h"

namespace int8d {

void max_pool_u8_ref(const PoolCall& call) {
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(call.shape, oy, ox);
    for (int c = call.channel_begin; c < call.channel_end; ++c) {
      uint8_t most = 0;  // the least u8: padding never wins
      for_taps(call, n, oy, ox, w, [&](const uint8_t* tap) { most = std::max(most, tap[c]); });
      call.out.at(n, oy, ox)[c] = most;
    }
  });
}

void avg_pool_u8_ref(const PoolCall& call) {
  const AvgPoolParams& p = *call.average;
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(call.shape, oy, ox);
    for (int c = call.channel_begin; c < call.channel_end; ++c) {
      int32_t sum = -w.inside() * p.in_zp;
      for_taps(call, n, oy, ox, w, [&](const uint8_t* tap) { sum += tap[c]; });
      call.out.at(n, oy, ox)[c] = requantize(sum, multiplier(call, w), p.lo, p.hi, p.out_zp);
    }
  });
}

}  // namespace int8d
