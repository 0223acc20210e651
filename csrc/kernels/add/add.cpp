#include "add.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr AddKernel kKernels[] = {
#define INT8D_ADD(name, isa) {#name, Isa::isa, name},
#include "kernels.inc"
#undef INT8D_ADD
};

}  // namespace

std::span<const AddKernel> add_kernels() { return kKernels; }

const AddKernel& add_kernel(Isa isa) {
  const AddKernel* best = &kKernels[0];
  for (const AddKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
