// Quantized product of two maps, or of a map and one value a channel (squeeze-and-excite).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

// q = clamp(rint(float((q1 - zp1) * (q2 - zp2)) * multiplier), lo - zp, hi - zp) + zp. The product is exact in fp32.
struct MulParams {
  int32_t zp1 = 0, zp2 = 0;
  float multiplier = 1;
  int32_t lo = 0, hi = 255, zp = 0;
};

struct MulCall {
  const uint8_t *a, *b;  // pixels one behind the other
  uint8_t* out;
  size_t pixels, channels;
  size_t b_stride;  // from pixel to pixel of b: channels, or 0 where all pixels take the same values
  const MulParams* params;
};

struct MulKernel {
  const char* name;
  Isa isa;
  void (*run)(const MulCall&);
};

std::span<const MulKernel> mul_kernels();
const MulKernel& mul_kernel(Isa);

}  // namespace int8d
