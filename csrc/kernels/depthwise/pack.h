// What a packed depthwise convolution holds, and the kernels of kernels.inc.
#pragma once
#include <cstdint>

#include "../common/aligned.h"
#include "../conv/pack.h"
#include "depthwise.h"

namespace int8d {

// A block is what a register holds in bytes: 16 channels a 128-bit lane. Interleaving the bytes of several taps works
// within lanes, so vector j of a block holds channels 4j .. 4j+3 of every lane: weights, biases and multipliers are
// stored in that order, and the packing of the results to bytes, lane by lane too, restores the channels' order.
struct DepthwisePacked {
  ConvShape shape;
  int32_t lo = 0, hi = 255, out_zp = 0;
  bool narrow = false;        // see ConvPacked
  int block = 1;              // channels in a block: 64 (AVX512), 32 (AVX2), 1 (reference: plain order)
  int taps = 1;               // taps in a group: 4 (bytes of vpdpbusd), 2 (words of vpmaddwd), 1
  int groups = 1;             // of taps; missing taps have zero weights
  std::vector<int> order;     // of taps: the window's, then, in bytes, those again that have a rest in some channel
  Aligned<int8_t> weight8;    // [blocks][groups][4][block / 4][4 taps],
                              // or [blocks][2][column_vectors][4][block / 4][4], see depthwise_pack_columns
  Aligned<int16_t> weight16;  // [blocks][groups][4][block / 4][2 taps], or [c][kh * kw] for the reference
  Aligned<int32_t> bias;      // [blocks][block], bias - in_zp * sum(w)
  Aligned<float> multiplier;  // [blocks][block]

  Output output(const DepthwiseCall& call) const { return {lo, hi, out_zp, nullptr, call.table}; }
  int blocks() const { return (shape.oc + block - 1) / block; }
  // Offset from the window's first byte of a tap in `order`; past the last one, of any byte that may be read.
  ptrdiff_t tap_offset(size_t at, const View& in) const {
    if (at >= order.size()) return 0;
    const int tap = order[at];
    return tap / shape.kw * shape.dh * in.row + tap % shape.kw * shape.dw * in.pixel;
  }
};

// Kernels keep one offset a tap on the stack: few_taps' 252 of a window, as many for each piece of a rest.
constexpr int kMostTaps = 756;
DepthwisePackedPtr depthwise_pack(const ConvDef& def, int block, int taps);

// For windows of 3x3 and 5x5, computed two rows at a time from columns of the 4 or 6 rows that these read. Channel by
// channel, a column's first 4 rows are the 4 bytes of a vector's element; rows 4 and 5 of two neighbouring columns are
// those of another. So an output takes 3 (3x3), or 5 + 3 (5x5) dot products; missing weights are zero. The same vectors
// serve the second of the two rows, with weights that lie one row lower. Null where weights don't fit s8.
DepthwisePackedPtr depthwise_pack_columns(const ConvDef& def);
constexpr int column_vectors(int kernel) { return kernel == 3 ? 3 : 8; }

// Channels a pixel takes in the block that starts with `left` to go. Where that is 32 or 16, 2 or 4 pixels lie side by
// side in the block of 64, which has their weights as many times.
constexpr int column_pitch(int left) { return left > 32 ? 64 : left > 16 ? 32 : 16; }

// Where channel `c` of a block lies among its elements: interleaving leaves channel 16 l + 4 j + i as element i of
// 128-bit lane l of vector j.
constexpr int block_slot(int c, int block) { return c % 16 / 4 * (block / 4) + c / 16 * 4 + c % 4; }

#define INT8D_DEPTHWISE(name, isa, pack, accepts) void name(const DepthwiseCall&);
#include "kernels.inc"
#undef INT8D_DEPTHWISE

}  // namespace int8d
