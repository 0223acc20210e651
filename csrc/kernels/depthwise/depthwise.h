// Depthwise convolution (groups == ic == oc), NHWC, u8 x s8 -> u8. Same life as conv.h, and the same describing types.
#pragma once
#include "../conv/conv.h"

namespace int8d {

struct DepthwisePacked;
struct DepthwisePackedDeleter {
  void operator()(DepthwisePacked*) const;
};
using DepthwisePackedPtr = std::unique_ptr<DepthwisePacked, DepthwisePackedDeleter>;

struct DepthwiseCall {
  const DepthwisePacked* packed = nullptr;
  View in, out;
  const uint8_t* table = nullptr;  // optional, [256]: the result is looked up in it
  int row_begin = 0, row_end = 0;  // over batch * oh
};

struct DepthwiseKernel {
  const char* name;
  Isa isa;
  DepthwisePackedPtr (*pack)(const ConvDef&);  // null where the kernel can't hold these weights
  void (*run)(const DepthwiseCall&);
  bool (*accepts)(const ConvShape&);
};

std::span<const DepthwiseKernel> depthwise_kernels();
// As conv_candidates.
std::vector<const DepthwiseKernel*> depthwise_candidates(const ConvShape&, Isa);
DepthwisePackedPtr packed_again(const DepthwisePacked&, const ConvDef&);  // as the convolution's
size_t depthwise_packed_bytes(const DepthwisePacked&);

}  // namespace int8d
