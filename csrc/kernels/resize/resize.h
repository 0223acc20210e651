// Bilinear and nearest interpolation of an NHWC map in integers (agent/graph.py, Resize2d).
//
// Columns first: a row of the input becomes a row of the output's width in 2048ths, exact in 32 bits; two of those,
// which neighbouring rows of the output share, become one of the output. Sums of integers have no order, so this is
// exact, and the 2^21 that rounds is there already as 2^10 in each of the two: (2048 - weight + weight) * 2^10.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"
#include "../common/view.h"

namespace int8d {

// Of a row or a column of the output: two of the input, and the weight of the second in 2048ths.
struct Blend {
  int32_t low, high, weight;
};

struct ResizeCall {
  View in, out;
  int oh, ow, c;
  std::span<const Blend> rows, columns;  // [oh], [ow]
  bool nearest = false;                  // all weights are 0
  int32_t* scratch = nullptr;            // [2 * ow * c]
  int row_begin = 0, row_end = 0;        // over batch * oh
};

struct ResizeKernel {
  const char* name;
  Isa isa;
  // out[x * c + i] = (2048 - weight) * in[low * pixel + i] + weight * in[high * pixel + i] + 2^10
  void (*columns)(const uint8_t* in, ptrdiff_t pixel, std::span<const Blend> columns, int c, int32_t* out);
  // out[i] = ((2048 - weight) * low[i] + weight * high[i]) >> 22
  void (*rows)(const int32_t* low, const int32_t* high, int32_t weight, size_t count, uint8_t* out);
};

std::span<const ResizeKernel> resize_kernels();
const ResizeKernel& resize_kernel(Isa);
void resize2d(const ResizeKernel& kernel, const ResizeCall& call);

}  // namespace int8d
