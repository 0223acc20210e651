#include "depthwise.h"

#include <cassert>

#include "pack.h"

namespace int8d {
namespace {

// The vector kernels keep one offset a tap on the stack.
bool accepts(const ConvShape& s) { return s.kh * s.kw <= 252; }

constexpr DepthwiseKernel kKernels[] = {
#define INT8D_DEPTHWISE(name, isa, block, taps) \
  {#name, Isa::isa, [](const ConvDef& def) { return depthwise_pack(def, block, taps); }, name, accepts},
#include "kernels.inc"
#undef INT8D_DEPTHWISE
};

}  // namespace

std::span<const DepthwiseKernel> depthwise_kernels() { return kKernels; }

const DepthwiseKernel& depthwise_kernel(const ConvShape& shape, Isa isa) {
  const DepthwiseKernel* best = &kKernels[0];
  for (const DepthwiseKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa) && kernel.accepts(shape)) best = &kernel;
  return *best;
}

void DepthwisePackedDeleter::operator()(DepthwisePacked* packed) const { delete packed; }

size_t depthwise_packed_bytes(const DepthwisePacked& p) {
  return p.weight8.bytes() + p.weight16.bytes() + p.bias.bytes() + p.multiplier.bytes();
}

DepthwisePackedPtr depthwise_pack(const ConvDef& def, int block, int taps) {
  const ConvShape& s = def.shape;
  assert(s.groups == s.ic && s.ic == s.oc);
  const int window = s.kh * s.kw;
  auto packed = DepthwisePackedPtr(new DepthwisePacked);
  DepthwisePacked& p = *packed;
  p.shape = s;
  p.lo = def.lo;
  p.hi = def.hi;
  p.out_zp = def.out_zp;
  p.block = block;
  p.taps = taps;
  p.groups = (window + taps - 1) / taps;
  const size_t slots = static_cast<size_t>(p.blocks()) * block;
  if (taps == 2)
    p.weight16 = Aligned<int16_t>(slots * p.groups * 2);
  else
    p.weight8 = Aligned<int8_t>(slots * p.groups * taps);
  p.bias = Aligned<int32_t>(slots);
  p.multiplier = Aligned<float>(slots);
  for (int c = 0; c < s.oc; ++c) {
    // Channel 16l + 4j + i of its block is element i of lane l of vector j.
    const int base = c / block * block, in_block = c % block;
    const int slot = block == 1 ? 0 : in_block % 16 / 4 * (block / 4) + in_block / 16 * 4 + in_block % 4;
    int32_t sum = 0;
    for (int tap = 0; tap < window; ++tap) {
      const int8_t w = def.weight[static_cast<size_t>(c) * window + tap];
      sum += w;
      const size_t at =
          (static_cast<size_t>(base) * p.groups + static_cast<size_t>(tap / taps) * block + slot) * taps + tap % taps;
      if (taps == 2)
        p.weight16[at] = w;
      else
        p.weight8[at] = w;
    }
    p.bias[base + slot] = static_cast<int32_t>(static_cast<uint32_t>(def.bias[c]) -
                                               static_cast<uint32_t>(def.in_zp) * static_cast<uint32_t>(sum));
    p.multiplier[base + slot] = def.multiplier[c];
  }
  return packed;
}

}  // namespace int8d
