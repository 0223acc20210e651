// The scalar reference: every other kernel gives these bytes.
#include "../common/requant.h"
#include "variants.h"

namespace int8d {

void matmul_u8u8_ref(const MatmulCall& call) {
  const MatmulParams& p = *call.params;
  const size_t k = static_cast<size_t>(call.shape.k), n = static_cast<size_t>(call.shape.n);
  const size_t inner = call.shape.transpose_b ? 1 : n, outer = call.shape.transpose_b ? k : 1;
  for (size_t row = static_cast<size_t>(call.row_begin); row < static_cast<size_t>(call.row_end); ++row)
    for (size_t column = 0; column < n; ++column) {
      int32_t acc = 0;
      for (size_t i = 0; i < k; ++i)
        acc += (call.a[row * k + i] - p.zp_a) * (call.b[i * inner + column * outer] - p.zp_b);
      call.out[row * n + column] = requantize(acc, p.multiplier, p.lo, p.hi, p.zp);
    }
}

}  // namespace int8d
