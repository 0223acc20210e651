// Matrix product of two activations, u8 [m, k] x u8 [k, n] -> u8 [m, n], requantized with one multiplier.
//
// Neither operand is known before run time: the second is packed while the product is computed, a panel of columns at a
// time, into scratch that stays in L1. Instructions that multiply u8 by s8 take it as b - 128, and what that leaves out
// comes from sums over the rows of a and the columns of b:
//   sum (a - za)(b - zb) = sum a b' - zb' sum a - za sum b' + k za zb',  b' = b - 128, zb' = zb - 128.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

struct MatmulShape {
  int m = 0, k = 0, n = 0;
  bool transpose_b = false;  // b is [n][k], else [k][n]
};

// q = clamp(rint(float(sum (a - zp_a)(b - zp_b)) * multiplier), lo - zp, hi - zp) + zp; the true sum fits int32.
struct MatmulParams {
  int32_t zp_a = 0, zp_b = 0;
  float multiplier = 1;
  int32_t lo = 0, hi = 255, zp = 0;
};

struct MatmulCall {
  MatmulShape shape;
  const uint8_t *a = nullptr, *b = nullptr;  // contiguous; readable kOverread bytes past their ends
  uint8_t* out = nullptr;                    // [m][n], contiguous
  int row_begin = 0, row_end = 0;            // of a and out
  uint8_t* scratch = nullptr;                // MatmulKernel::scratch(shape) bytes, 64-byte aligned
  const MatmulParams* params = nullptr;
};

struct MatmulKernel {
  const char* name;
  Isa isa;
  void (*run)(const MatmulCall&);
  size_t (*scratch)(const MatmulShape&);
};

std::span<const MatmulKernel> matmul_kernels();
const MatmulKernel& matmul_kernel(const MatmulShape&, Isa);

}  // namespace int8d
