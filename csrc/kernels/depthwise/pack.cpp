#include "pack.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <numeric>

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

}  // namespace

DepthwisePackedPtr packed_again(const DepthwisePacked& packed, const ConvDef& def) {
  const ConvShape &a = packed.shape, &b = def.shape;
  if (std::array{a.kh, a.kw, a.sh, a.sw, a.dh, a.dw, a.oc} != std::array{b.kh, b.kw, b.sh, b.sw, b.dh, b.dw, b.oc})
    return nullptr;
  auto again = DepthwisePackedPtr(new DepthwisePacked(packed));
  again->shape = b;
  return again;
}

DepthwisePackedPtr depthwise_pack(const ConvDef& def, int block, int taps) {
  const ConvShape& s = def.shape;
  const size_t window = static_cast<size_t>(s.kh) * s.kw;
  auto packed = described(def, block);
  DepthwisePacked& p = *packed;
  const bool bytes = taps == 4;
  p.taps = taps;
  p.order.resize(window);
  std::iota(p.order.begin(), p.order.end(), 0);
  const std::vector<std::vector<int8_t>> pieces = bytes ? rest_pieces(def) : std::vector<std::vector<int8_t>>();
  std::vector<const int8_t*> from(window, def.weight.data());  // of each tap in `order`
  for (const std::vector<int8_t>& piece : pieces)
    for (size_t tap = 0; tap < window; ++tap)
      for (size_t at = tap; at < piece.size(); at += window)
        if (piece[at]) {
          p.order.push_back(static_cast<int>(tap));
          from.push_back(piece.data());
          break;
        }
  p.groups = (static_cast<int>(p.order.size()) + taps - 1) / taps;
  const size_t weights = static_cast<size_t>(p.blocks()) * block * p.groups * taps;
  if (bytes)
    p.weight8 = Aligned<int8_t>(weights);
  else
    p.weight16 = Aligned<int16_t>(weights);
  for (int c = 0; c < s.oc; ++c) {
    const int base = c / block * block, slot = block == 1 ? 0 : block_slot(c % block, block);
    for (size_t i = 0; i < p.order.size(); ++i) {
      const size_t weight = static_cast<size_t>(c) * window + static_cast<size_t>(p.order[i]), group = i / taps;
      const size_t at = (static_cast<size_t>(base) * p.groups + group * block + slot) * taps + i % taps;
      if (bytes)
        p.weight8[at] = from[i][weight];
      else
        p.weight16[at] = static_cast<int16_t>(def.weight[weight] + (def.rest.empty() ? 0 : def.rest[weight]));
    }
    p.bias[base + slot] = folded_bias(def, c);
    p.multiplier[base + slot] = def.multiplier[c];
  }
  return packed;
}

DepthwisePackedPtr depthwise_pack_columns(const ConvDef& def) {
  if (!def.rest.empty()) return nullptr;
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
