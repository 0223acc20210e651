// Depthwise convolution, AVX512-VNNI. Tile: 1 pixel x 64 channels.
//
// The bytes of 4 taps are interleaved so that one vpdpbusd adds 4 taps of 16 channels. A group of 4 taps takes
// 4 loads, 8 unpacks and 4 vpdpbusd; 3x3 is 3 groups: about 36 instructions for the sums of 64 outputs.
// Registers: 4 sums, 12 for interleaving; a 3x3's 12 weights stay in registers over a row.
#include <algorithm>
#include <array>

#include "../common/epilogue_avx512.h"
#include "pack.h"

namespace int8d {
namespace {

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }

// Groups > 0 is known while compiling (3x3, 5x5), 0 is any.
template <int Groups>
void run_row(const DepthwiseCall& call, int row, int block, const ptrdiff_t* offsets) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const int groups = Groups ? Groups : p.groups, n = row / s.oh, oy = row % s.oh, c = block * 64;
  const int8_t* weight = p.weight8.data() + static_cast<size_t>(block) * p.groups * 256;
  const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, -s.pad_left) + c;
  uint8_t* out = call.out.at(n, oy, 0) + c;
  const int channels = std::min(64, s.oc - c);
  const __mmask64 mask = channels == 64 ? ~0ull : (1ull << channels) - 1;
  const avx512::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int ox = 0; ox < s.ow; ++ox, in += s.sw * call.in.pixel, out += call.out.pixel) {
    __m512i acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(p.bias.data() + c + 16 * j);
    for (int g = 0; g < groups; ++g) {
      const __m512i t0 = load(in + offsets[4 * g]), t1 = load(in + offsets[4 * g + 1]);
      const __m512i t2 = load(in + offsets[4 * g + 2]), t3 = load(in + offsets[4 * g + 3]);
      const __m512i lo01 = _mm512_unpacklo_epi8(t0, t1), hi01 = _mm512_unpackhi_epi8(t0, t1);
      const __m512i lo23 = _mm512_unpacklo_epi8(t2, t3), hi23 = _mm512_unpackhi_epi8(t2, t3);
      const int8_t* w = weight + 256 * g;
      acc[0] = _mm512_dpbusd_epi32(acc[0], _mm512_unpacklo_epi16(lo01, lo23), load(w));
      acc[1] = _mm512_dpbusd_epi32(acc[1], _mm512_unpackhi_epi16(lo01, lo23), load(w + 64));
      acc[2] = _mm512_dpbusd_epi32(acc[2], _mm512_unpacklo_epi16(hi01, hi23), load(w + 128));
      acc[3] = _mm512_dpbusd_epi32(acc[3], _mm512_unpackhi_epi16(hi01, hi23), load(w + 192));
    }
    for (int j = 0; j < 4; ++j)
      acc[j] = _mm512_add_epi32(avx512::requantize(acc[j], _mm512_load_ps(p.multiplier.data() + c + 16 * j), clamp),
                                clamp.zp);
    __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(acc[0], acc[1]), _mm512_packus_epi32(acc[2], acc[3]));
    if (call.table) bytes = avx512::lookup(bytes, call.table);
    _mm512_mask_storeu_epi8(out, mask, bytes);
  }
}

}  // namespace

void depthwise_u8s8_64_avx512vnni(const DepthwiseCall& call) {
  const DepthwisePacked& p = *call.packed;
  std::array<ptrdiff_t, kMostTaps> offsets;
  for (int tap = 0; tap < p.groups * 4; ++tap) offsets[tap] = p.tap_offset(tap, call.in);
  const auto run = p.groups == 3 ? run_row<3> : p.groups == 7 ? run_row<7> : run_row<0>;
  for (int row = call.row_begin; row < call.row_end; ++row)
    for (int block = 0; block < p.blocks(); ++block) run(call, row, block, offsets.data());
}

}  // namespace int8d
