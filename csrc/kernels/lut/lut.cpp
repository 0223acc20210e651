#include "lut.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr LutKernel kKernels[] = {
#define INT8D_LUT(name, isa) {#name, Isa::isa, name},
#include "kernels.inc"
#undef INT8D_LUT
};

}  // namespace

std::span<const LutKernel> lut_kernels() { return kKernels; }

const LutKernel& lut_kernel(Isa isa) {
  const LutKernel* best = &kKernels[0];
  for (const LutKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
