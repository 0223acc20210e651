// Convolution (dense, strided, dilated, grouped), direct, NHWC, u8 x s8 -> u8.
//
// Life of a convolution: describe it (ConvShape), choose a kernel by instruction set (conv_candidates), pack the
// weights for that kernel once, then run it on any range of rows and channel panels, from any thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../common/isa.h"
#include "../common/requant.h"
#include "../common/view.h"

namespace int8d {

struct ConvShape {
  int batch = 1, ih = 0, iw = 0, ic = 0;  // input
  int oh = 0, ow = 0, oc = 0;             // output
  int kh = 1, kw = 1, sh = 1, sw = 1, dh = 1, dw = 1;
  int pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  int groups = 1;

  // How many rows of the output read `bytes` of the input that no other ones read.
  int band(int64_t bytes) const;
};

// The operator as the graph states it; pointers are read while packing only.
struct ConvDef {
  ConvShape shape;
  std::span<const int8_t> weight;     // [oc][kh][kw][ic / groups]
  std::span<const int32_t> bias;      // [oc]
  std::span<const float> multiplier;  // [oc]
  int32_t in_zp = 0;                  // canonical u8 units, as lo, hi, out_zp
  int32_t lo = 0, hi = 255, out_zp = 0;
  // Empty, or as `weight`: what s8 does not hold of u8 weights less their zero point; -128..128. A weight is the sum of
  // both, -255..255.
  std::span<const int16_t> rest{};
};

// What packing makes; a kernel's own layout, 64-byte aligned, owned.
struct ConvPacked;
struct ConvPackedDeleter {
  void operator()(ConvPacked*) const;
};
using ConvPackedPtr = std::unique_ptr<ConvPacked, ConvPackedDeleter>;

struct ConvCall {
  const ConvPacked* packed = nullptr;
  View in;  // its halo covers the padding
  View out;
  // Optional residual, same shape as out: q = add_quantized(conv's q, residual's q). zp1 is the convolution's out_zp.
  View residual;
  const AddParams* add = nullptr;
  const uint8_t* table = nullptr;      // optional, [256]: the result, the residual added, is looked up in it
  std::span<const uint8_t> ahead;      // what will be read next: a kernel may have it fetched to L2 meanwhile
  int row_begin = 0, row_end = 0;      // rows of the output, or tiles: 0 .. ConvKernel::rows(shape)
  uint8_t* scratch = nullptr;          // ConvKernel::scratch(shape) bytes, 64-byte aligned, of the calling worker
  int panel_begin = 0, panel_end = 0;  // panels of output channels, 0 .. ConvKernel::panels(shape)
};

struct ConvKernel {
  const char* name;  // e.g. conv_u8s8_14x32_avx512vnni
  Isa isa;
  int panel;                              // output channels in a panel (within one group)
  ConvPackedPtr (*pack)(const ConvDef&);  // null where the kernel can't prove its sums for these weights
  void (*run)(const ConvCall&);
  bool (*accepts)(const ConvShape&);
  int (*rows)(const ConvShape&);  // what a call's rows are counted in: rows of the output, over batch * oh, or tiles
  size_t (*scratch)(const ConvShape&);
  int panels(const ConvShape& s) const { return s.groups * ((s.oc / s.groups + panel - 1) / panel); }
};

std::span<const ConvKernel> conv_kernels();  // every variant compiled in, the reference first
// Those that accept the shape on the best instruction set up to `isa` that has one, the usual choice first.
std::vector<const ConvKernel*> conv_candidates(const ConvShape&, Isa);
// What packing the same weights for another batch or map gives, with the memory of the weights shared; null where a
// kernel lays them out otherwise for that.
ConvPackedPtr packed_again(const ConvPacked&, const ConvDef&);
size_t conv_packed_bytes(const ConvPacked&);
std::span<const uint8_t> conv_packed_weights(const ConvPacked&);  // panel by panel

}  // namespace int8d
