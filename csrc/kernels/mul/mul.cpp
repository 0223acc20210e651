#include "mul.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr MulKernel kKernels[] = {
#define INT8D_MUL(name, isa) {#name, Isa::isa, name},
#include "kernels.inc"
#undef INT8D_MUL
};

}  // namespace

std::span<const MulKernel> mul_kernels() { return kKernels; }

const MulKernel& mul_kernel(Isa isa) {
  const MulKernel* best = &kKernels[0];
  for (const MulKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
