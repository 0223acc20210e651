#include "depthwise.h"

#include "pack.h"

namespace int8d {
namespace {

// Kernels for any window keep one offset a tap on the stack.
bool few_taps(const ConvShape& s) { return s.kh * s.kw <= 252; }

[[maybe_unused]] bool columns(const ConvShape& s) {
  return s.kh == s.kw && (s.kh == 3 || s.kh == 5) && s.sh == s.sw && s.sh <= 2 && s.dh == 1 && s.dw == 1;
}

constexpr DepthwiseKernel kKernels[] = {
#define INT8D_DEPTHWISE(name, isa, pack, accepts) \
  {#name, Isa::isa, [](const ConvDef& def) { return pack; }, name, accepts},
#include "kernels.inc"
#undef INT8D_DEPTHWISE
};

}  // namespace

std::span<const DepthwiseKernel> depthwise_kernels() { return kKernels; }

std::vector<const DepthwiseKernel*> depthwise_candidates(const ConvShape& shape, Isa isa) {
  std::vector<const DepthwiseKernel*> found;
  for (const DepthwiseKernel& kernel : kKernels) {
    if (kernel.isa > isa || !isa_supported(kernel.isa) || !kernel.accepts(shape)) continue;
    if (!found.empty() && found.front()->isa < kernel.isa) found.clear();
    found.insert(found.begin(), &kernel);
  }
  if (found.empty()) found.push_back(&kKernels[0]);  // the reference takes any window
  return found;
}

void DepthwisePackedDeleter::operator()(DepthwisePacked* packed) const { delete packed; }

size_t depthwise_packed_bytes(const DepthwisePacked& p) {
  return p.weight8.bytes() + p.weight16.bytes() + p.bias.bytes() + p.multiplier.bytes();
}

}  // namespace int8d
