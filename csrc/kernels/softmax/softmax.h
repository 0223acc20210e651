// Softmax of quantized logits, exact: a table of integer exponentials, an integer sum, one IEEE division; the shares as
// fp32, or quantized at once.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

// With d = (the row's maximum) - q: p = fp32(double(table[d]) / double(sum of table[d])). Quantized:
// clamp(rint(p / scale), -zp, 255 - zp) + zp.
struct SoftmaxParams {
  alignas(64) std::array<int32_t, 256> table{};  // 0 or more, the first above zero, so that the sum is, too
  alignas(64) std::array<std::array<uint8_t, 256>, 4> planes{};  // the table's bytes, the lowest first
  bool quantized = false;
  float scale = 1;  // of the output, where quantized
  int32_t zp = 0;

  explicit SoftmaxParams(std::span<const int32_t> entries);  // [256]
  SoftmaxParams(std::span<const int32_t> entries, float output_scale, int32_t output_zp);
};

struct SoftmaxCall {
  const uint8_t* in;  // rows one behind the other
  void* out;          // float, or, where quantized, uint8_t
  size_t rows, count;
  const SoftmaxParams* params;
};

struct SoftmaxKernel {
  const char* name;
  Isa isa;
  void (*run)(const SoftmaxCall&);
};

std::span<const SoftmaxKernel> softmax_kernels();
const SoftmaxKernel& softmax_kernel(Isa);

}  // namespace int8d
