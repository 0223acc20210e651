#include "matmul.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr MatmulKernel kKernels[] = {
#define INT8D_MATMUL(name, isa, scratch) \
  {#name, Isa::isa, name, [](const MatmulShape& s) { return size_t{scratch(s).bytes}; }},
#include "kernels.inc"
#undef INT8D_MATMUL
};

}  // namespace

std::span<const MatmulKernel> matmul_kernels() { return kKernels; }

const MatmulKernel& matmul_kernel(const MatmulShape& shape, Isa isa) {
  // A few tiles of rows do not hide what it costs to make bytes of their sums.
  constexpr int kLeastRows = 64;
  if (isa == Isa::amx && shape.m < kLeastRows) isa = Isa::avx512vnni;
  const MatmulKernel* best = &kKernels[0];
  for (const MatmulKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
