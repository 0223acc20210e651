#include "argmax.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr ArgMaxKernel kKernels[] = {
#define INT8D_ARGMAX(isa) {"argmax_u8_" #isa, Isa::isa, argmax_u8_##isa},
#include "kernels.inc"
#undef INT8D_ARGMAX
};

}  // namespace

std::span<const ArgMaxKernel> argmax_kernels() { return kKernels; }

const ArgMaxKernel& argmax_kernel(Isa isa) {
  const ArgMaxKernel* best = &kKernels[0];
  for (const ArgMaxKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
