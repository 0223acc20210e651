#include "pack.h"

#include <algorithm>
#include <cassert>

namespace int8d {
namespace {

DepthwisePackedPtr described(const ConvDef& def, int block) {
  assert(def.shape.groups == def.shape.ic && def.shape.ic == def.shape.oc);
  auto packed = DepthwisePackedPtr(new DepthwisePacked);
  packed->shape = def.shape;
  packed->lo = def.lo;
  packed->hi = def.hi;
  packed->out_zp = def.out_zp;
  packed->narrow = is_narrow(def);
  packed->block = block;
  const size_t slots = static_cast<size_t>(packed->blocks()) * block;
  packed->bias = Aligned<int32_t>(slots);
  packed->multiplier = Aligned<float>(slots);
  return packed;
}

// bias - in_zp * sum(w) of a channel, modulo 2^32.
int32_t folded_bias(const ConvDef& def, int channel) {
  const size_t window = static_cast<size_t>(def.shape.kh) * def.shape.kw;
  int32_t sum = 0;
  for (size_t tap = 0; tap < window; ++tap) sum += def.weight[static_cast<size_t>(channel) * window + tap];
  return static_cast<int32_t>(static_cast<uint32_t>(def.bias[channel]) -
                              static_cast<uint32_t>(def.in_zp) * static_cast<uint32_t>(sum));
}

}  // namespace

DepthwisePackedPtr depthwise_pack(const ConvDef& def, int block, int taps) {
  const ConvShape& s = def.shape;
  const int window = s.kh * s.kw;
  auto packed = described(def, block);
  DepthwisePacked& p = *packed;
  p.taps = taps;
  p.groups = (window + taps - 1) / taps;
  const size_t slots = static_cast<size_t>(p.blocks()) * block;
  if (taps == 2)
    p.weight16 = Aligned<int16_t>(slots * p.groups * 2);
  else
    p.weight8 = Aligned<int8_t>(slots * p.groups * taps);
  for (int c = 0; c < s.oc; ++c) {
    const int base = c / block * block, slot = block == 1 ? 0 : block_slot(c % block, block);
    for (int tap = 0; tap < window; ++tap) {
      const int8_t w = def.weight[static_cast<size_t>(c) * window + tap];
      const size_t at =
          (static_cast<size_t>(base) * p.groups + static_cast<size_t>(tap / taps) * block + slot) * taps + tap % taps;
      if (taps == 2)
        p.weight16[at] = w;
      else
        p.weight8[at] = w;
    }
    p.bias[base + slot] = folded_bias(def, c);
    p.multiplier[base + slot] = def.multiplier[c];
  }
  return packed;
}

DepthwisePackedPtr depthwise_pack_columns(const ConvDef& def) {
  const ConvShape& s = def.shape;
  const int k = s.kh, vectors = column_vectors(k);
  auto packed = described(def, 64);
  DepthwisePacked& p = *packed;
  p.weight8 = Aligned<int8_t>(static_cast<size_t>(p.blocks()) * 64 * 2 * vectors * 4);
  for (int first = 0; first < s.oc; first += 64) {
    const int pitch = column_pitch(s.oc - first);
    int8_t* block = p.weight8.data() + static_cast<size_t>(first) * 2 * vectors * 4;
    for (int at = 0; at < 64; ++at) {
      const int c = first + at % pitch, slot = block_slot(at, 64);
      if (c >= s.oc) continue;
      p.bias[first + slot] = folded_bias(def, c);
      p.multiplier[first + slot] = def.multiplier[c];
      for (int row = 0; row < 2; ++row)
        for (int ky = 0; ky < k; ++ky)
          for (int kx = 0; kx < k; ++kx) {
            const int y = ky + row;  // of the column's rows
            const int vector = y < 4 ? kx : k + kx / 2, element = y < 4 ? y : kx % 2 * 2 + y - 4;
            block[((row * vectors + vector) * 64 + slot) * 4 + element] =
                def.weight[(static_cast<size_t>(c) * k + ky) * k + kx];
          }
    }
  }
  return packed;
}

}  // namespace int8d
