#include "softmax.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr SoftmaxKernel kKernels[] = {
#define INT8D_SOFTMAX(name, isa) {#name, Isa::isa, name},
#include "kernels.inc"
#undef INT8D_SOFTMAX
};

}  // namespace

SoftmaxParams::SoftmaxParams(std::span<const int32_t> entries) {
  for (size_t d = 0; d < 256; ++d) {
    table[d] = entries[d];
    for (size_t plane = 0; plane < 4; ++plane) planes[plane][d] = static_cast<uint8_t>(entries[d] >> (8 * plane));
  }
}

SoftmaxParams::SoftmaxParams(std::span<const int32_t> entries, float output_scale, int32_t output_zp)
    : SoftmaxParams(entries) {
  quantized = true;
  scale = output_scale;
  zp = output_zp;
}

std::span<const SoftmaxKernel> softmax_kernels() { return kKernels; }

const SoftmaxKernel& softmax_kernel(Isa isa) {
  const SoftmaxKernel* best = &kKernels[0];
  for (const SoftmaxKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
