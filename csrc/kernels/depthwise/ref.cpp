// The scalar reference: every other kernel gives these bytes.
#include "pack.h"

namespace int8d {

void depthwise_u8s8_ref(const DepthwiseCall& call) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Output output = p.output(call);
  const int window = s.kh * s.kw;
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int ox = 0; ox < s.ow; ++ox) {
      const int n = row / s.oh, oy = row % s.oh;
      const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, ox * s.sw - s.pad_left);
      uint8_t* out = call.out.at(n, oy, ox);
      for (int c = 0; c < s.oc; ++c) {
        uint32_t acc = static_cast<uint32_t>(p.bias[c]);
        for (int tap = 0; tap < window; ++tap)
          acc += static_cast<uint32_t>(in[p.tap_offset(tap, call.in) + c] *
                                       p.weight16[static_cast<size_t>(c) * window + tap]);
        out[c] = finish(static_cast<int32_t>(acc), p.multiplier[c], 0, output);
      }
    }
}

}  // namespace int8d
