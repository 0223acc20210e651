// The scalar reference: every other kernel gives these bytes.
#include <algorithm>

#include "../quantize/quantize.h"
#include "variants.h"

namespace int8d {

void softmax_u8_ref(const SoftmaxCall& call) {
  const SoftmaxParams& p = *call.params;
  const uint8_t* in = call.in;
  for (size_t row = 0; row < call.rows; ++row, in += call.count) {
    const uint8_t most = *std::max_element(in, in + call.count);
    int64_t sum = 0;
    for (size_t i = 0; i < call.count; ++i) sum += p.table[most - in[i]];
    const double total = static_cast<double>(sum);
    for (size_t i = 0; i < call.count; ++i) {
      const float share = static_cast<float>(static_cast<double>(p.table[most - in[i]]) / total);
      const size_t at = row * call.count + i;
      if (p.quantized)
        quantize_u8(&share, static_cast<uint8_t*>(call.out) + at, 1, p.scale, p.zp);
      else
        static_cast<float*>(call.out)[at] = share;
    }
  }
}

}  // namespace int8d
