// Matrix product over the last axis, u8 [m, k] x s8 [n, k] -> u8 [m, n]; m is 1 for a classifier's head.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "../common/isa.h"
#include "../common/requant.h"

namespace int8d {

struct LinearDef {
  int m = 1, k = 0, n = 0;
  std::span<const int8_t> weight;    // [n][k]
  std::span<const int32_t> bias;     // [n]
  std::span<const float> multiplier; // [n]
  int32_t in_zp = 0;                 // canonical u8 units, as lo, hi, out_zp
  int32_t lo = 0, hi = 255, out_zp = 0;
};

struct LinearPacked;
struct LinearPackedDeleter { void operator()(LinearPacked*) const; };
using LinearPackedPtr = std::unique_ptr<LinearPacked, LinearPackedDeleter>;

struct LinearCall {
  const LinearPacked* packed = nullptr;
  const uint8_t* in = nullptr;  // [m][k], contiguous; readable kOverread bytes past its end
  uint8_t* out = nullptr;       // [m][n], contiguous
  int m_begin = 0, m_end = 0;
  int panel_begin = 0, panel_end = 0;  // panels of output features
};

struct LinearKernel {
  const char* name;
  Isa isa;
  int panel;  // output features in a panel
  LinearPackedPtr (*pack)(const LinearDef&);
  void (*run)(const LinearCall&);
  int panels(int n) const { return (n + panel - 1) / panel; }
};

std::span<const LinearKernel> linear_kernels();
const LinearKernel& linear_kernel(Isa);
size_t linear_packed_bytes(const LinearPacked&);

}  // namespace int8d
