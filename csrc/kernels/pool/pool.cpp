#include "pool.h"

#include "window.h"

namespace int8d {
namespace {

constexpr PoolKernel kKernels[] = {
#define INT8D_POOL(isa) {"max_pool_u8_" #isa, "avg_pool_u8_" #isa, Isa::isa, max_pool_u8_##isa, avg_pool_u8_##isa},
#include "kernels.inc"
#undef INT8D_POOL
};

}  // namespace

std::span<const PoolKernel> pool_kernels() { return kKernels; }

const PoolKernel& pool_kernel(Isa isa) {
  const PoolKernel* best = &kKernels[0];
  for (const PoolKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
