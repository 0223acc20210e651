#include "pack.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <cstring>

namespace int8d {

void ConvPackedDeleter::operator()(ConvPacked* packed) const { delete packed; }

std::span<const uint8_t> conv_packed_weights(const ConvPacked& p) {
  if (p.weight16.size()) return {reinterpret_cast<const uint8_t*>(p.weight16.data()), p.weight16.size() * 2};
  return {reinterpret_cast<const uint8_t*>(p.weight.data()), p.weight.size()};
}

size_t conv_packed_bytes(const ConvPacked& p) {
  return p.weight.bytes() + p.weight16.bytes() + p.bias.bytes() + p.multiplier.bytes() + p.extra_weight.bytes();
}

std::vector<ConvSegment> conv_segments(const ConvShape& s, int step, int run) {
  std::vector<ConvSegment> segments;
  const int icg = s.ic / s.groups;
  const bool whole_rows = s.dw == 1 && s.groups == 1;
  for (int ky = 0; ky < s.kh; ++ky)
    for (int kx = 0; kx < (whole_rows ? 1 : s.kw); ++kx) {
      const int bytes = whole_rows ? s.kw * icg : icg;
      segments.push_back({ky, kx, bytes, (bytes + step * run - 1) / (step * run) * run});
    }
  return segments;
}

namespace {

// Splits the step's saturating pairs into w1 (in place) + w2; true where there was one.
bool split_step(int8_t* step, int8_t* rest, int panel) {
  bool split = false;
  for (int i = 0; i < panel * 4; i += 2) {
    const int sum = step[i] + step[i + 1];
    if (sum <= 128 && sum >= -128) continue;
    split = true;
    for (int j = i; j < i + 2; ++j) {
      const int8_t half = static_cast<int8_t>(step[j] / 2);
      rest[j] = static_cast<int8_t>(step[j] - half);
      step[j] = half;
    }
  }
  return split;
}

}  // namespace

bool is_narrow(const ConvDef& def) {
  const size_t k = def.weight.size() / static_cast<size_t>(def.shape.oc);
  for (size_t c = 0; c < static_cast<size_t>(def.shape.oc); ++c) {
    int64_t bound = 0;
    for (size_t i = 0; i < k; ++i) bound += std::abs(def.weight[c * k + i]);
    // A value without its zero point lies in -255..255.
    if ((255 * static_cast<double>(bound) + std::abs(static_cast<double>(def.bias[c]))) * def.multiplier[c] >= 0x1p30)
      return false;
  }
  return true;
}

namespace {

// All but the splitting: weights in steps of 4 / sizeof(T) to `weight`.
template <typename T>
ConvPackedPtr pack(const ConvDef& def, int panel, Aligned<T> ConvPacked::* weight, int run = 1) {
  const ConvShape& s = def.shape;
  const int icg = s.ic / s.groups, ocg = s.oc / s.groups, taps = s.kh * s.kw;
  assert(def.weight.size() == static_cast<size_t>(s.oc) * taps * icg);
  constexpr int kStep = 4 / static_cast<int>(sizeof(T));
  auto packed = ConvPackedPtr(new ConvPacked);
  ConvPacked& p = *packed;
  p.shape = s;
  p.lo = def.lo;
  p.hi = def.hi;
  p.out_zp = def.out_zp;
  p.narrow = is_narrow(def);
  p.panel = panel;
  p.segments = conv_segments(s, kStep, run);
  for (const ConvSegment& segment : p.segments) p.steps += segment.steps;
  const int panels = s.groups * p.panels_of_group();
  const size_t panel_size = static_cast<size_t>(p.steps) * panel * kStep;
  p.*weight = Aligned<T>(panels * panel_size);
  p.bias = Aligned<int32_t>(static_cast<size_t>(panels) * panel);
  p.multiplier = Aligned<float>(static_cast<size_t>(panels) * panel);

  for (int g = 0; g < s.groups; ++g)
    for (int c = 0; c < ocg; ++c) {
      const int oc = g * ocg + c, at = g * p.panels_of_group() + c / panel, lane = c % panel;
      const int8_t* w = def.weight.data() + static_cast<size_t>(oc) * taps * icg;
      T* out = (p.*weight).data() + at * panel_size + lane * kStep;
      for (const ConvSegment& segment : p.segments) {
        const int8_t* from = w + (segment.ky * s.kw + segment.kx) * icg;  // a row of taps is contiguous here, too
        const int whole = segment.bytes / kStep;                          // steps
        auto copy = [&](int count) {  // a step at a time: a fixed count becomes one load and one store
          for (int i = 0; i < count; ++i) out[i] = from[i];
        };
        for (int i = 0; i < whole; ++i, out += panel * kStep, from += kStep) copy(kStep);
        copy(segment.bytes % kStep);
        out += static_cast<size_t>(segment.steps - whole) * panel * kStep;
      }
      uint32_t sum = 0;  // modulo 2^32, as the accumulator
      for (int i = 0; i < taps * icg; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(w[i]));
      p.bias[at * panel + lane] =
          static_cast<int32_t>(static_cast<uint32_t>(def.bias[oc]) - static_cast<uint32_t>(def.in_zp) * sum);
      p.multiplier[at * panel + lane] = def.multiplier[oc];
    }
  return packed;
}

}  // namespace

ConvPackedPtr conv_pack_words(const ConvDef& def, int panel) { return pack(def, panel, &ConvPacked::weight16); }

ConvPackedPtr conv_pack_tiles(const ConvDef& def) { return pack(def, 16, &ConvPacked::weight, 16); }

ConvPackedPtr conv_pack_split(const ConvDef& def, int panel) {
  ConvPackedPtr packed = conv_pack(def, panel, true);
  const size_t steps = packed->weight.size() / (static_cast<size_t>(panel) * 4);
  return packed->extras.size() * 4 > steps ? nullptr : std::move(packed);
}

ConvPackedPtr conv_pack(const ConvDef& def, int panel, bool split_saturating) {
  ConvPackedPtr packed = pack(def, panel, &ConvPacked::weight);
  if (!split_saturating) return packed;
  ConvPacked& p = *packed;
  const int panels = def.shape.groups * p.panels_of_group();
  std::vector<int8_t> rests, rest(static_cast<size_t>(panel) * 4);
  p.extra_begin.push_back(0);
  int8_t* step = p.weight.data();
  for (int at = 0; at < panels; ++at) {
    for (int i = 0; i < static_cast<int>(p.segments.size()); ++i)
      for (int k = 0; k < p.segments[i].steps; ++k, step += panel * 4) {
        std::fill(rest.begin(), rest.end(), int8_t{0});
        if (!split_step(step, rest.data(), panel)) continue;
        p.extras.push_back({i, k});
        rests.insert(rests.end(), rest.begin(), rest.end());
      }
    p.extra_begin.push_back(static_cast<int>(p.extras.size()));
  }
  p.extra_weight = Aligned<int8_t>(rests.size());
  std::copy(rests.begin(), rests.end(), p.extra_weight.data());
  return packed;
}

}  // namespace int8d
