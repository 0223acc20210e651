// The scalar reference: every other kernel gives these bytes.
#include "variants.h"

namespace int8d {

void layer_norm_u8_ref(const LayerNormCall& call) {
  const LayerNormParams& p = *call.params;
  const uint8_t* in = call.in;
  uint8_t* out = call.out;
  for (size_t row = 0; row < call.rows; ++row, in += call.n, out += call.n) {
    uint64_t sum = 0, squares = 0;
    for (size_t i = 0; i < call.n; ++i) {
      sum += in[i];
      squares += static_cast<uint64_t>(in[i]) * in[i];
    }
    const float r = layer_norm_factor(call.n, sum, squares, p.epsilon);
    const int32_t n = static_cast<int32_t>(call.n), s = static_cast<int32_t>(sum);
    for (size_t i = 0; i < call.n; ++i) out[i] = normalize(n * in[i] - s, r, p.gamma[i], p.beta[i], p);
  }
}

}  // namespace int8d
