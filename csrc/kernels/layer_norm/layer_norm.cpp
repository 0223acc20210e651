#include "layer_norm.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr LayerNormKernel kKernels[] = {
#define INT8D_LAYER_NORM(name, isa) {#name, Isa::isa, name},
#include "kernels.inc"
#undef INT8D_LAYER_NORM
};

}  // namespace

std::span<const LayerNormKernel> layer_norm_kernels() { return kKernels; }

const LayerNormKernel& layer_norm_kernel(Isa isa) {
  const LayerNormKernel* best = &kKernels[0];
  for (const LayerNormKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
