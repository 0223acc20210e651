// Max and average pooling over windows of an NHWC map. Windows are clipped to the map, so no halo is needed:
// padding never wins a maximum, and adds zero to a sum. Global pooling is a window as large as the map.
//
// Only the scalar form: its inner loop runs over channels, side by side in memory, and compilers vectorize it.
#pragma once
#include <span>

#include "../common/requant.h"
#include "../common/view.h"
#include "../conv/conv.h"

namespace int8d {

struct PoolCall {
  ConvShape shape;  // ic == oc; the window in kh, kw and so on
  View in, out;
  int row_begin = 0, row_end = 0;  // over batch * oh
};

void max_pool_u8(const PoolCall&);

struct AvgPoolParams {
  int32_t in_zp = 0, lo = 0, hi = 255, out_zp = 0;
  bool count_include_pad = true;
  const float* multipliers = nullptr;  // [kh * kw + 1]: fp32(sx / (n * sy)) for a divisor of n
};

void avg_pool_u8(const PoolCall&, const AvgPoolParams&);

}  // namespace int8d
