// The borders between float and int8.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace int8d {

// clamp(rint(x / scale), -zp, 255 - zp) + zp; NaN becomes the zero point.
inline void quantize_u8(const float* in, uint8_t* out, size_t count, float scale, int32_t zp) {
  const float lo = static_cast<float>(-zp), hi = static_cast<float>(255 - zp);
  for (size_t i = 0; i < count; ++i) {
    const float v = std::nearbyintf(in[i] / scale);
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(v != v ? 0.0f : std::min(std::max(v, lo), hi)) + zp);
  }
}

inline void dequantize_u8(const uint8_t* in, float* out, size_t count, float scale, int32_t zp) {
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i] - zp) * scale;
}

}  // namespace int8d
