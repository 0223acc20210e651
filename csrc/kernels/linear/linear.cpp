#include "linear.h"

#include "variants.h"

namespace int8d {
namespace {

constexpr LinearKernel kKernels[] = {
#define INT8D_LINEAR(name, isa, panel, pack) {#name, Isa::isa, panel, [](const ConvDef& def) { return pack; }, name},
#include "kernels.inc"
#undef INT8D_LINEAR
};

}  // namespace

ConvShape linear_shape(int m, int k, int n) {
  ConvShape s;
  s.ih = s.oh = 1;
  s.iw = s.ow = m;
  s.ic = k;
  s.oc = n;
  return s;
}

std::span<const LinearKernel> linear_kernels() { return kKernels; }

const LinearKernel& linear_kernel(Isa isa) {
  const LinearKernel* best = &kKernels[0];
  for (const LinearKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

}  // namespace int8d
