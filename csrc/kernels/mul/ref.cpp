// The scalar reference: every other kernel gives these bytes.
#include "../common/requant.h"
#include "variants.h"

namespace int8d {

void mul_u8_ref(const MulCall& call) {
  const MulParams& p = *call.params;
  for (size_t x = 0; x < call.pixels; ++x)
    for (size_t c = 0; c < call.channels; ++c) {
      const size_t i = x * call.channels + c;
      const int32_t product = (call.a[i] - p.zp1) * (call.b[x * call.b_stride + c] - p.zp2);
      call.out[i] = requantize(product, p.multiplier, p.lo, p.hi, p.zp);
    }
}

}  // namespace int8d
