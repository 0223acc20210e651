// The scalar reference: every other kernel gives these bytes.
#include "pack.h"

namespace int8d {

void conv_u8s8_ref(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Output output = p.output(call);
  const int icg = s.ic / s.groups, ocg = p.channels_of_group();
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const int n = row / s.oh, oy = row % s.oh;
    for (int panel = call.panel_begin; panel < call.panel_end; ++panel) {
      const int g = panel / p.panels_of_group(), first = panel % p.panels_of_group() * p.panel;
      const int16_t* weight = p.weight16.data() + static_cast<size_t>(panel) * p.steps * p.panel * 2;
      for (int ox = 0; ox < s.ow; ++ox)
        for (int lane = 0; lane < p.panel && first + lane < ocg; ++lane) {
          uint32_t acc = static_cast<uint32_t>(p.bias[panel * p.panel + lane]);
          const int16_t* w = weight + lane * 2;
          for (const ConvSegment& segment : p.segments) {
            const uint8_t* in =
                call.in.at(n, oy * s.sh - s.pad_top + segment.ky * s.dh, ox * s.sw - s.pad_left + segment.kx * s.dw) +
                g * icg;
            for (int i = 0; i < segment.bytes; ++i)
              acc += static_cast<uint32_t>(in[i] * w[static_cast<size_t>(i / 2) * p.panel * 2 + i % 2]);
            w += static_cast<size_t>(segment.steps) * p.panel * 2;
          }
          const int oc = g * ocg + first + lane;
          const uint8_t residual = call.add ? call.residual.at(n, oy, ox)[oc] : 0;
          call.out.at(n, oy, ox)[oc] =
              finish(static_cast<int32_t>(acc), p.multiplier[panel * p.panel + lane], residual, output);
        }
    }
  }
}

}  // namespace int8d
