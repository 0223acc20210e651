// Max and average pooling over windows of an NHWC map. Windows are clipped to the map, so no halo is needed:
// padding never wins a maximum, and adds zero to a sum. Global pooling is a window as large as the map.
#pragma once
#include <span>

#include "../common/isa.h"
#include "../common/requant.h"
#include "../common/view.h"
#include "../conv/conv.h"

namespace int8d {

struct AvgPoolParams {
  int32_t in_zp = 0, lo = 0, hi = 255, out_zp = 0;
  bool count_include_pad = true;
  const float* multipliers = nullptr;  // [kh * kw + 1]: fp32(sx / (n * sy)) for a divisor of n
};

struct PoolCall {
  ConvShape shape;  // ic == oc; the window in kh, kw and so on
  View in, out;
  const AvgPoolParams* average = nullptr;  // of avg only
  int row_begin = 0, row_end = 0;          // over batch * oh
  int channel_begin = 0, channel_end = 0;  // of oc
};

struct PoolKernel {
  const char *max_name, *avg_name;
  Isa isa;
  void (*max)(const PoolCall&);
  void (*avg)(const PoolCall&);
};

std::span<const PoolKernel> pool_kernels();
const PoolKernel& pool_kernel(Isa);

}  // namespace int8d
