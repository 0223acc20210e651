// Matrix product over the last axis, u8 [m, k] x s8 [n, k] -> u8 [m, n]; m is 1 for a classifier's head.
//
// It is a 1x1 convolution in all but the tile: with one row there is no weight to reuse, so a panel is wide, to have
// enough sums in flight. Weights are packed by conv/pack.h.
#pragma once
#include <span>

#include "../conv/conv.h"

namespace int8d {

// The product as the 1x1 convolution that it is: m pixels, k input and n output channels.
ConvShape linear_shape(int m, int k, int n);

struct LinearCall {
  const ConvPacked* packed = nullptr;
  const uint8_t* in = nullptr;  // [m][k], contiguous; readable kOverread bytes past its end
  uint8_t* out = nullptr;       // [m][n], contiguous
  int m_begin = 0, m_end = 0;
  int panel_begin = 0, panel_end = 0;  // panels of output features
};

struct LinearKernel {
  const char* name;
  Isa isa;
  int panel;  // output features in a panel
  ConvPackedPtr (*pack)(const ConvDef&);
  void (*run)(const LinearCall&);
  int panels(int n) const { return (n + panel - 1) / panel; }
};

std::span<const LinearKernel> linear_kernels();
const LinearKernel& linear_kernel(Isa);

}  // namespace int8d
