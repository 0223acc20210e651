// Layer normalization over the last axis of a quantized tensor, exact: integer sums, one square root in double, fp32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

// With S = sum q and D = n sum q^2 - S^2, neither of which changes D or n q - S where a zero point is taken off q:
// r = fp32(1 / sqrt(double(D) + epsilon)), t = fp32(fp32(n q - S) * r),
// y = clamp(rint(fp32(fp32(t * gamma) + beta)), lo - zp, hi - zp) + zp.
struct LayerNormParams {
  double epsilon = 0;  // epsilon * n^2 / sx^2 of the source; kLeastEpsilon or more, which keeps r finite
  const float *gamma = nullptr, *beta = nullptr;  // [n], in units of the output
  int32_t lo = 0, hi = 255, zp = 0;
};
inline constexpr double kLeastEpsilon = 1e-70;
inline constexpr size_t kMostNormalized = 65536;  // elements of a row, whose sum of squares stays below 2^32

struct LayerNormCall {
  const uint8_t* in;  // rows one behind the other
  uint8_t* out;
  size_t rows, n;
  const LayerNormParams* params;
};

struct LayerNormKernel {
  const char* name;
  Isa isa;
  void (*run)(const LayerNormCall&);
};

std::span<const LayerNormKernel> layer_norm_kernels();
const LayerNormKernel& layer_norm_kernel(Isa);

}  // namespace int8d
