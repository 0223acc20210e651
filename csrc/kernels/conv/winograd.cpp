#include "winograd.h"

#include <algorithm>
#include <cmath>

namespace int8d {
namespace {

constexpr int kG[6][3] = {{6, 0, 0}, {-4, -4, -4}, {-4, 4, -4}, {1, 2, 4}, {1, -2, 4}, {0, 0, 6}};

// |Y| < 2^25 for every input: a value without its zero point lies in -zp .. 255 - zp.
bool proven(const ConvDef& def) {
  const size_t k = def.weight.size() / static_cast<size_t>(def.shape.oc);
  const int64_t least = -def.in_zp, most = 255 - def.in_zp;
  for (size_t c = 0; c < static_cast<size_t>(def.shape.oc); ++c) {
    int64_t positive = 0, negative = 0;
    for (size_t i = 0; i < k; ++i) (def.weight[c * k + i] > 0 ? positive : negative) += def.weight[c * k + i];
    const int64_t high = def.bias[c] + most * positive + least * negative;
    const int64_t low = def.bias[c] + least * positive + most * negative;
    // A multiplier so small that a 64th of it is no normal number would round differently.
    if (high >= 1 << 25 || low < -(1 << 25) || def.multiplier[c] < 0x1p-110f) return false;
  }
  return is_narrow(def);
}

}  // namespace

bool winograd_accepts(const ConvShape& s) {
  return s.kh == 3 && s.kw == 3 && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1 && s.groups == 1 &&
         s.ic % 32 == 0 && s.oh % 4 != 1 && s.ow % 4 != 1;
}

bool winograd_expands(const ConvShape& s, const WinogradForm& form) {
  constexpr int kResident = 1280 * 1024, kTiles = 16;
  return form.expand && int64_t{kPlanes} * 2 * s.ic * s.oc > kResident && s.ic % kExpanded == 0 &&
         s.batch * WinogradGrid(s).tiles() <= kTiles;
}

int winograd_chunk(const ConvShape& s, const WinogradForm& form) {
  // Weights that stay in L2 leave it to tiles and products only so far; larger ones should be streamed once.
  constexpr int kWeightBytes = 400 * 1024, kSmall = 320 * 1024, kLarge = 768 * 1024;
  const bool resident = int64_t{kPlanes} * 2 * s.ic * s.oc <= kWeightBytes;
  const int tile = kPlanes * (2 * s.ic + 4 * form.panel), all = s.batch * WinogradGrid(s).tiles();
  const int tiles = std::max(1, (resident ? kSmall : kLarge) / tile);
  return tiles >= all ? all : tiles >= form.rows ? tiles / form.rows * form.rows : tiles;
}

WinogradScratch::WinogradScratch(const ConvShape& s, const WinogradForm& form) {
  const size_t tiles = static_cast<size_t>(winograd_chunk(s, form)), panel = static_cast<size_t>(form.panel);
  v_plane = (tiles * s.ic * 2 | 64) + 128;
  m_plane = (tiles * panel * 4 | 64) + 128;
  u_plane = winograd_expands(s, form) ? winograd_u_plane(form.panel) : 0;
}

ConvPackedPtr winograd_pack(const ConvDef& def, const WinogradForm& form) {
  if (!def.rest.empty() || !proven(def)) return nullptr;
  const ConvShape& s = def.shape;
  auto packed = ConvPackedPtr(new ConvPacked);
  ConvPacked& p = *packed;
  p.shape = s;
  p.lo = def.lo;
  p.hi = def.hi;
  p.out_zp = def.out_zp;
  p.narrow = true;
  p.panel = form.panel;
  p.winograd = form;
  const bool expands = winograd_expands(s, form);
  const size_t panels = static_cast<size_t>(p.panels_of_group()), panel = static_cast<size_t>(form.panel);
  if (expands)
    p.weight = Aligned<int8_t>(panels * 9 * s.ic * panel);
  else
    p.weight16 = Aligned<int16_t>(panels * kPlanes * s.ic * panel);
  p.bias = Aligned<int32_t>(panels * panel);
  p.multiplier = Aligned<float>(panels * panel);
  for (int oc = 0; oc < s.oc; ++oc) {
    const int8_t* w = def.weight.data() + static_cast<size_t>(oc) * 9 * s.ic;
    const size_t first = oc / panel, lane = oc % panel;
    int32_t sum = 0;
    for (int ic = 0; ic < s.ic; ++ic) {
      for (int i = 0; i < 9; ++i) sum += w[i * s.ic + ic];
      const size_t pair = static_cast<size_t>(ic / 2), at = lane * 2 + ic % 2;
      if (expands) {
        int8_t* out = p.weight.data() + (first * s.ic / 2 + pair) * 9 * panel * 2 + at;
        for (int i = 0; i < 9; ++i) out[i * panel * 2] = w[i * s.ic + ic];
        continue;
      }
      int rows[6][3];  // G g, then U = G g G'
      for (int i = 0; i < 6; ++i)
        for (int x = 0; x < 3; ++x) {
          rows[i][x] = 0;
          for (int y = 0; y < 3; ++y) rows[i][x] += kG[i][y] * w[(y * 3 + x) * s.ic + ic];
        }
      int16_t* out = p.weight16.data() + first * kPlanes * s.ic * panel + pair * panel * 2 + at;
      for (int i = 0; i < 6; ++i)
        for (int j = 0; j < 6; ++j, out += static_cast<size_t>(s.ic) * panel) {
          int u = 0;
          for (int x = 0; x < 3; ++x) u += kG[j][x] * rows[i][x];
          *out = static_cast<int16_t>(u);
        }
    }
    // The sums come as 64 Y.
    const uint32_t zero_points = static_cast<uint32_t>(def.in_zp) * static_cast<uint32_t>(sum);
    p.bias[oc] = static_cast<int32_t>(64 * (static_cast<uint32_t>(def.bias[oc]) - zero_points));
    p.multiplier[oc] = def.multiplier[oc] / 64;
  }
  return packed;
}

}  // namespace int8d
