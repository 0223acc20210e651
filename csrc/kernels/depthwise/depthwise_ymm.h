// Depthwise convolution of any window in registers of 256 bits: AVX2 and AVX-VNNI. Tile: 1 pixel x 32 channels.
//
// `Taps` interleaves the bytes of `Taps::kTaps` taps and adds their products to 4 sums of 8 channels, in the order of
// depthwise_pack.
#pragma once
#include <algorithm>
#include <array>
#include <optional>

#include "../common/epilogue_avx2.h"
#include "pack.h"

namespace int8d {
namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Bytes of the weights of a group of taps: 4 vectors of 8 channels' dwords.
constexpr int kGroupBytes = 128;

template <typename Taps>
void run_row(const DepthwiseCall& call, int row, int block, const ptrdiff_t* offsets,
             const std::optional<avx2::Lookup>& lookup) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const int n = row / s.oh, oy = row % s.oh, c = block * 32;
  const uint8_t* weight = Taps::weight(p) + static_cast<size_t>(block) * p.groups * kGroupBytes;
  const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, -s.pad_left) + c;
  uint8_t* out = call.out.at(n, oy, 0) + c;
  const int channels = std::min(32, s.oc - c);
  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int ox = 0; ox < s.ow; ++ox, in += s.sw * call.in.pixel, out += call.out.pixel) {
    __m256i acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(p.bias.data() + c + 8 * j);
    for (int g = 0; g < p.groups; ++g) Taps::add(acc, in, offsets + Taps::kTaps * g, weight + kGroupBytes * g);
    for (int j = 0; j < 4; ++j)
      acc[j] = _mm256_add_epi32(avx2::requantize(acc[j], p.multiplier.data() + c + 8 * j, clamp), clamp.zp);
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(acc[0], acc[1]), _mm256_packus_epi32(acc[2], acc[3]));
    if (lookup) bytes = (*lookup)(bytes);
    avx2::store_bytes(out, _mm256_castsi256_si128(bytes), channels);
    if (channels > 16) avx2::store_bytes(out + 16, _mm256_extracti128_si256(bytes, 1), channels - 16);
  }
}

template <typename Taps>
void run_depthwise(const DepthwiseCall& call) {
  const DepthwisePacked& p = *call.packed;
  std::array<ptrdiff_t, kMostTaps> offsets;
  for (int tap = 0; tap < p.groups * Taps::kTaps; ++tap) offsets[static_cast<size_t>(tap)] = p.tap_offset(tap, call.in);
  std::optional<avx2::Lookup> lookup;
  if (call.table) lookup.emplace(call.table);
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int block = 0; block < p.blocks(); ++block) run_row<Taps>(call, row, block, offsets.data(), lookup);
}

}  // namespace
}  // namespace int8d
