// The scalar reference: every other kernel gives these bytes.
#include "variants.h"

namespace int8d {

void linear_u8s8_ref(const LinearCall& call) {
  const ConvPacked& p = *call.packed;
  const int k = p.shape.ic, n = p.shape.oc;
  for (int m = call.m_begin; m < call.m_end; ++m)
    for (int panel = call.panel_begin; panel < call.panel_end; ++panel)
      for (int lane = 0; lane < p.panel && panel * p.panel + lane < n; ++lane) {
        const int at = panel * p.panel + lane;
        const int16_t* w = p.weight16.data() + static_cast<size_t>(panel) * p.steps * p.panel * 2 + lane * 2;
        uint32_t acc = static_cast<uint32_t>(p.bias[at]);
        for (int i = 0; i < k; ++i)
          acc += static_cast<uint32_t>(call.in[static_cast<size_t>(m) * k + i] *
                                       w[static_cast<size_t>(i / 2) * p.panel * 2 + i % 2]);
        call.out[static_cast<size_t>(m) * n + at] =
            requantize(static_cast<int32_t>(acc), p.multiplier[at], p.lo, p.hi, p.out_zp);
      }
}

}  // namespace int8d
