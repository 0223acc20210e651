// The kernels that kernels.inc lists, and what they share.
#pragma once
#include <cmath>

#include "../common/requant.h"
#include "layer_norm.h"

namespace int8d {

// Of a row, from its sums.
inline float layer_norm_factor(uint64_t n, uint64_t sum, uint64_t squares, double epsilon) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(n * squares - sum * sum) + epsilon));
}

inline uint8_t normalize(int32_t centered, float r, float gamma, float beta, const LayerNormParams& p) {
  const float t = static_cast<float>(centered) * r, scaled = t * gamma;
  float v = std::nearbyintf(scaled + beta);
  v = std::min(std::max(v, static_cast<float>(p.lo - p.zp)), static_cast<float>(p.hi - p.zp));
  return static_cast<uint8_t>(static_cast<int32_t>(v) + p.zp);
}

#define INT8D_LAYER_NORM(name, isa) void name(const LayerNormCall&);
#include "kernels.inc"
#undef INT8D_LAYER_NORM

}  // namespace int8d
