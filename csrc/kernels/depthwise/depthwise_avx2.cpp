// Depthwise convolution, AVX2, exact. Tile: 1 pixel x 32 channels.
//
// The bytes of 2 taps are interleaved and widened to words, so that one vpmaddwd (which can't saturate here) adds
// 2 taps of 8 channels: 2 loads, 6 unpacks, 4 x (vpmaddwd + vpaddd) for 2 taps of 32 channels.
// Registers: 4 sums, 6 for interleaving, 1 of zeros.
#include <algorithm>
#include <array>

#include "../common/epilogue_avx2.h"
#include "pack.h"

namespace int8d {
namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

void run_row(const DepthwiseCall& call, int row, int block, const ptrdiff_t* offsets) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const int n = row / s.oh, oy = row % s.oh, c = block * 32;
  const int16_t* weight = p.weight16.data() + static_cast<size_t>(block) * p.groups * 64;
  const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, -s.pad_left) + c;
  uint8_t* out = call.out.at(n, oy, 0) + c;
  const int channels = std::min(32, s.oc - c);
  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  const __m256i zero = _mm256_setzero_si256();
  for (int ox = 0; ox < s.ow; ++ox, in += s.sw * call.in.pixel, out += call.out.pixel) {
    __m256i acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(p.bias.data() + c + 8 * j);
    for (int g = 0; g < p.groups; ++g) {
      const __m256i t0 = load(in + offsets[2 * g]), t1 = load(in + offsets[2 * g + 1]);
      const __m256i lo = _mm256_unpacklo_epi8(t0, t1), hi = _mm256_unpackhi_epi8(t0, t1);
      const int16_t* w = weight + 64 * g;
      auto dot2 = [&](int j, __m256i x) { acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x, load(w + 16 * j))); };
      dot2(0, _mm256_unpacklo_epi8(lo, zero));
      dot2(1, _mm256_unpackhi_epi8(lo, zero));
      dot2(2, _mm256_unpacklo_epi8(hi, zero));
      dot2(3, _mm256_unpackhi_epi8(hi, zero));
    }
    for (int j = 0; j < 4; ++j)
      acc[j] = _mm256_add_epi32(avx2::requantize(acc[j], p.multiplier.data() + c + 8 * j, clamp), clamp.zp);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(acc[0], acc[1]), _mm256_packus_epi32(acc[2], acc[3]));
    avx2::store_bytes(out, _mm256_castsi256_si128(bytes), channels);
    if (channels > 16) avx2::store_bytes(out + 16, _mm256_extracti128_si256(bytes, 1), channels - 16);
  }
}

}  // namespace

void depthwise_u8s8_32_avx2(const DepthwiseCall& call) {
  const DepthwisePacked& p = *call.packed;
  std::array<ptrdiff_t, 256> offsets;
  for (int tap = 0; tap < p.groups * 2; ++tap) offsets[tap] = p.tap_offset(tap, call.in);
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int block = 0; block < p.blocks(); ++block) run_row(call, row, block, offsets.data());
}

}  // namespace int8d
