#include "pack.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <cstring>

#include "winograd.h"

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

bool is_narrow(const ConvDef& def) {
  const size_t k = def.weight.size() / static_cast<size_t>(def.shape.oc);
  for (size_t c = 0; c < static_cast<size_t>(def.shape.oc); ++c) {
    int64_t bound = 0;
    for (size_t i = 0; i < k; ++i) bound += std::abs(def.weight[c * k + i]);
    if (!def.rest.empty())
      for (size_t i = 0; i < k; ++i) bound += std::abs(def.rest[c * k + i]);
    // A value without its zero point lies in -255..255.
    if ((255 * static_cast<double>(bound) + std::abs(static_cast<double>(def.bias[c]))) * def.multiplier[c] >= 0x1p30)
      return false;
  }
  return true;
}

int32_t folded_bias(const ConvDef& def, int channel) {
  const size_t k = def.weight.size() / static_cast<size_t>(def.shape.oc), first = static_cast<size_t>(channel) * k;
  uint32_t sum = 0;
  auto add = [&](auto weights) {
    for (size_t i = 0; i < k; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(weights[first + i]));
  };
  add(def.weight);
  if (!def.rest.empty()) add(def.rest);
  return static_cast<int32_t>(static_cast<uint32_t>(def.bias[static_cast<size_t>(channel)]) -
                              static_cast<uint32_t>(def.in_zp) * sum);
}

std::vector<std::vector<int8_t>> rest_pieces(const ConvDef& def) {
  std::vector<std::vector<int8_t>> pieces;
  std::vector<int16_t> left(def.rest.begin(), def.rest.end());
  while (std::any_of(left.begin(), left.end(), [](int16_t w) { return w != 0; })) {
    std::vector<int8_t>& piece = pieces.emplace_back(left.size());
    for (size_t i = 0; i < left.size(); ++i) {
      piece[i] = static_cast<int8_t>(std::clamp<int>(left[i], -128, 127));
      left[i] = static_cast<int16_t>(left[i] - piece[i]);
    }
  }
  return pieces;
}

namespace {

// The parts of the window's segments in which a piece of a rest is not zero, in whole runs of `run` steps.
std::vector<ConvSegment> parts_of(const std::vector<int8_t>& piece, const ConvShape& s,
                                  std::span<const ConvSegment> segments, int run) {
  const int icg = s.ic / s.groups;
  const size_t k = piece.size() / static_cast<size_t>(s.oc);
  std::vector<ConvSegment> parts, spans;  // every run of them; or one a segment, from its first to its last
  for (const ConvSegment& segment : segments) {
    std::vector<bool> held(static_cast<size_t>(segment.steps / run));
    for (size_t oc = 0; oc < static_cast<size_t>(s.oc); ++oc) {
      const int8_t* rest = piece.data() + oc * k + static_cast<size_t>(segment.ky * s.kw + segment.kx) * icg;
      for (int i = 0; i < segment.bytes; ++i)
        if (rest[i]) held[static_cast<size_t>(i / (4 * run))] = true;
    }
    auto part = [&](int begin, int end) {
      const int first = begin * run, steps = (end - begin) * run;
      return ConvSegment{segment.ky, segment.kx, std::min(segment.bytes - 4 * first, 4 * steps), steps, first};
    };
    int least = -1, most = -1;
    for (int i = 0, end; i < static_cast<int>(held.size()); i = end) {
      for (end = i + 1; end < static_cast<int>(held.size()) && held[end] == held[i];) ++end;
      if (!held[i]) continue;
      parts.push_back(part(i, end));
      if (least < 0) least = i;
      most = end;
    }
    if (most > 0) spans.push_back(part(least, most));
  }
  return parts.size() <= kMostSegments / 3 ? parts : spans;
}

// Lays weights [oc][k] out for segments first .. last - 1 of a packed convolution, in steps of kStep, `to` being its
// first panel's first step: put(element of `to`, weight).
template <typename T, int kStep = 4 / static_cast<int>(sizeof(T)), typename W, typename Put>
void lay_out(const ConvPacked& p, const W& weights, size_t first, size_t last, T* to, Put put) {
  const ConvShape& s = p.shape;
  const int icg = s.ic / s.groups, ocg = p.channels_of_group(), panel = p.panel;
  const size_t k = weights.size() / static_cast<size_t>(s.oc),
               panel_size = static_cast<size_t>(p.steps) * panel * kStep;
  int before = 0;
  for (size_t i = 0; i < first; ++i) before += p.segments[i].steps;
  for (int oc = 0; oc < s.oc; ++oc) {
    const int at = oc / ocg * p.panels_of_group() + oc % ocg / panel, lane = oc % ocg % panel;
    T* out = to + at * panel_size + (static_cast<size_t>(before) * panel + lane) * kStep;
    for (size_t i = first; i < last; ++i) {
      const ConvSegment& segment = p.segments[i];
      // A row of taps is contiguous here, too.
      const auto* from =
          weights.data() + static_cast<size_t>(oc) * k + (segment.ky * s.kw + segment.kx) * icg + segment.first * kStep;
      const int whole = segment.bytes / kStep;  // steps
      auto step = [&](int count) {              // a step at a time: a fixed count becomes one load and one store
        for (int j = 0; j < count; ++j) put(out[j], from[j]);
      };
      for (int j = 0; j < whole; ++j, out += panel * kStep, from += kStep) step(kStep);
      step(segment.bytes % kStep);
      out += static_cast<size_t>(segment.steps - whole) * panel * kStep;
    }
  }
}

constexpr auto kSet = [](auto& to, auto weight) { to = weight; };
constexpr auto kAdd = [](int16_t& to, int16_t weight) { to = static_cast<int16_t>(to + weight); };

// All but the rests: weights in steps of 4 / sizeof(T) to `weight`, and the segments that it is read in.
template <typename T>
ConvPackedPtr pack(const ConvDef& def, int panel, Aligned<T> ConvPacked::* weight, int run = 1, bool again = false) {
  const ConvShape& s = def.shape;
  assert(def.weight.size() == static_cast<size_t>(s.oc) * s.kh * s.kw * (s.ic / s.groups));
  assert(def.rest.empty() || def.rest.size() == def.weight.size());
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
  std::vector<size_t> ends{p.segments.size()};  // of the window's segments, and of each piece's parts
  const std::vector<std::vector<int8_t>> pieces = again ? rest_pieces(def) : std::vector<std::vector<int8_t>>();
  for (const std::vector<int8_t>& piece : pieces) {
    const std::vector<ConvSegment> parts = parts_of(piece, s, std::span(p.segments).first(ends[0]), run);
    p.segments.insert(p.segments.end(), parts.begin(), parts.end());
    ends.push_back(p.segments.size());
  }
  for (const ConvSegment& segment : p.segments) p.steps += segment.steps;
  const int panels = s.groups * p.panels_of_group();
  p.*weight = Aligned<T>(static_cast<size_t>(panels) * p.steps * panel * kStep);
  p.bias = Aligned<int32_t>(static_cast<size_t>(panels) * panel);
  p.multiplier = Aligned<float>(static_cast<size_t>(panels) * panel);
  lay_out(p, def.weight, 0, ends[0], (p.*weight).data(), kSet);
  for (size_t i = 0; i < pieces.size(); ++i) lay_out(p, pieces[i], ends[i], ends[i + 1], (p.*weight).data(), kSet);
  const int ocg = p.channels_of_group();
  for (int oc = 0; oc < s.oc; ++oc) {
    const int at = (oc / ocg * p.panels_of_group() + oc % ocg / panel) * panel + oc % ocg % panel;
    p.bias[at] = folded_bias(def, oc);
    p.multiplier[at] = def.multiplier[oc];
  }
  return packed;
}

// Takes as much of two weights as a step may hold. With `saturating`, no more than 128 of one sign.
void take(int16_t* left, int8_t* step, bool saturating) {
  int part[2];
  for (int i = 0; i < 2; ++i) part[i] = std::clamp<int>(left[i], -128, 127);
  if (saturating && std::abs(part[0] + part[1]) > 128) {
    const int a = std::abs(part[0]), b = std::abs(part[1]), sign = part[0] < 0 ? -1 : 1;
    const int first = std::min(a, std::max(64, 128 - b));
    part[0] = sign * first;
    part[1] = sign * std::min(b, 128 - first);
  }
  for (int i = 0; i < 2; ++i) {
    step[i] = static_cast<int8_t>(part[i]);
    left[i] = static_cast<int16_t>(left[i] - part[i]);
  }
}

}  // namespace

ConvPackedPtr packed_again(const ConvPacked& packed, const ConvDef& def) {
  const ConvShape &a = packed.shape, &b = def.shape;
  const auto window = [](const ConvShape& s) {
    return std::array{s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, s.ic, s.oc, s.groups};
  };
  const bool winograd = packed.winograd.panel > 0;
  if (window(a) != window(b) ||
      (winograd && winograd_expands(a, packed.winograd) != winograd_expands(b, packed.winograd)))
    return nullptr;
  auto again = ConvPackedPtr(new ConvPacked(packed));
  again->shape = b;
  return again;
}

ConvPackedPtr conv_pack(const ConvDef& def, int panel) { return pack(def, panel, &ConvPacked::weight, 1, true); }

ConvPackedPtr conv_pack_tiles(const ConvDef& def) { return pack(def, 16, &ConvPacked::weight, 16, true); }

ConvPackedPtr conv_pack_words(const ConvDef& def, int panel) {
  ConvPackedPtr packed = pack(def, panel, &ConvPacked::weight16);
  if (!def.rest.empty()) lay_out(*packed, def.rest, 0, packed->segments.size(), packed->weight16.data(), kAdd);
  return packed;
}

ConvPackedPtr conv_pack_split(const ConvDef& def, int panel) {
  ConvPackedPtr packed = conv_pack_extras(def, panel, true);
  const size_t steps = packed->weight.size() / (static_cast<size_t>(panel) * 4);
  return packed->extras.size() * 4 > steps ? nullptr : std::move(packed);
}

ConvPackedPtr conv_pack_extras(const ConvDef& def, int panel, bool saturating) {
  ConvPackedPtr packed = pack(def, panel, &ConvPacked::weight);
  ConvPacked& p = *packed;
  const size_t panels = static_cast<size_t>(def.shape.groups) * p.panels_of_group(),
               size = static_cast<size_t>(panel) * 4;
  p.extra_begin.assign(panels + 1, 0);
  if (!saturating && def.rest.empty()) return packed;
  std::vector<int16_t> rest(def.rest.empty() ? 0 : p.weight.size());
  if (!rest.empty()) lay_out<int16_t, 4>(p, def.rest, 0, p.segments.size(), rest.data(), kSet);
  std::vector<int8_t> extra_weight;
  std::vector<int16_t> left(size);  // of a step's weights
  int8_t* step = p.weight.data();
  const int16_t* more = rest.data();
  for (size_t at = 0; at < panels; ++at) {
    for (int i = 0; i < static_cast<int>(p.segments.size()); ++i)
      for (int k = 0; k < p.segments[i].steps; ++k, step += size) {
        for (size_t j = 0; j < size; ++j) left[j] = step[j];
        if (more)
          for (size_t j = 0; j < size; ++j) left[j] = static_cast<int16_t>(left[j] + *more++);
        for (size_t j = 0; j < size; j += 2) take(&left[j], step + j, saturating);
        while (std::any_of(left.begin(), left.end(), [](int16_t w) { return w != 0; })) {
          p.extras.push_back({i, k});
          extra_weight.resize(extra_weight.size() + size);
          for (size_t j = 0; j < size; j += 2)
            take(&left[j], &extra_weight[extra_weight.size() - size + j], saturating);
        }
      }
    p.extra_begin[at + 1] = static_cast<int>(p.extras.size());
  }
  p.extra_weight = Aligned<int8_t>(extra_weight.size());
  std::copy(extra_weight.begin(), extra_weight.end(), p.extra_weight.data());
  return packed;
}

}  // namespace int8d
