#include "conv.h"

#include "pack.h"

namespace int8d {
namespace {

// The vector kernels keep one offset a segment on the stack.
bool accepts(const ConvShape& s) { return s.kh * s.kw <= 256; }

constexpr ConvKernel kKernels[] = {
#define INT8D_CONV(name, isa, panel, split, tables) \
  {#name, Isa::isa, panel, tables, [](const ConvDef& def) { return conv_pack(def, panel, split); }, name, accepts},
#include "kernels.inc"
#undef INT8D_CONV
};

}  // namespace

std::span<const ConvKernel> conv_kernels() { return kKernels; }

const ConvKernel& conv_kernel(const ConvShape& shape, Isa isa) {
  const ConvKernel* best = &kKernels[0];
  for (const ConvKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa) && kernel.accepts(shape)) best = &kernel;
  return *best;
}

}  // namespace int8d
