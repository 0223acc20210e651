// Direct convolution, AVX2, exact. Tile: 4 pixels x 16 output channels.
//
// Registers: 8 accumulators, 2 weights, 1 broadcast, 2 products, 1 of ones: 14 of 16. A step of 4 input bytes takes
// 2 loads, 4 broadcasting loads and, for each of the 8 accumulators, vpmaddubsw + vpmaddwd + vpaddd.
// vpmaddubsw saturates at 16 bits: packing has split every pair of weights that could (pack.h), and the steps in
// `extras` add what was split off.
#include <immintrin.h>

#include <algorithm>
#include <array>

#include "../common/epilogue_avx2.h"
#include "pack.h"

namespace int8d {
namespace {

constexpr int kPixels = 4, kChannels = 16;

struct Tile {
  const uint8_t* in;
  ptrdiff_t in_stride;
  uint8_t* out;
  ptrdiff_t out_stride;
  const uint8_t* residual;
  ptrdiff_t res_stride;
  int panel, channels;
  const ptrdiff_t* offsets;
};

template <int P>
void run_tile(const ConvCall& call, const Tile& t) {
  const ConvPacked& p = *call.packed;
  __m256i acc[P][2];
  const int32_t* bias = p.bias.data() + t.panel * kChannels;
  for (int i = 0; i < P; ++i)
    for (int v = 0; v < 2; ++v) acc[i][v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(bias + 8 * v));
  auto step = [&](const uint8_t* in, const int8_t* w) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
    for (int i = 0; i < P; ++i) {
      const __m256i x = avx2::broadcast4(in + i * t.in_stride);
      acc[i][0] = avx2::dot4(acc[i][0], x, w0);
      acc[i][1] = avx2::dot4(acc[i][1], x, w1);
    }
  };
  const int8_t* w = p.weight.data() + static_cast<size_t>(t.panel) * p.steps * 64;
  for (size_t i = 0; i < p.segments.size(); ++i) {
    const uint8_t* in = t.in + t.offsets[i];
    for (int k = 0; k < p.segments[i].steps; ++k, in += 4, w += 64) step(in, w);
  }
  for (int i = p.extra_begin[t.panel]; i < p.extra_begin[t.panel + 1]; ++i)
    step(t.in + t.offsets[p.extras[i].segment] + 4 * p.extras[i].step,
         p.extra_weight.data() + static_cast<size_t>(i) * 64);

  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  const float* multiplier = p.multiplier.data() + t.panel * kChannels;
  for (int i = 0; i < P; ++i) {
    __m256i q[2];
    uint8_t residual[kChannels] = {};
    if (call.add) __builtin_memcpy(residual, t.residual + i * t.res_stride, static_cast<size_t>(t.channels));
    for (int v = 0; v < 2; ++v) {
      q[v] = avx2::requantize(acc[i][v], multiplier + 8 * v, clamp);
      if (call.add) {
        const avx2::Add add(*call.add);
        q[v] = _mm256_add_epi32(avx2::add(q[v], avx2::load_bytes(residual + 8 * v), add), add.clamp.zp);
      } else {
        q[v] = _mm256_add_epi32(q[v], clamp.zp);
      }
    }
    avx2::store_bytes(t.out + i * t.out_stride, avx2::pack_bytes(q[0], q[1]), t.channels);
  }
}

constexpr std::array kTiles = {run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>};

}  // namespace

void conv_u8s8_4x16_avx2(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  std::array<ptrdiff_t, 256> offsets;
  for (size_t i = 0; i < p.segments.size(); ++i)
    offsets[i] = p.segments[i].ky * s.dh * call.in.row + p.segments[i].kx * s.dw * call.in.pixel;
  Tile t{};
  t.in_stride = s.sw * call.in.pixel;
  t.out_stride = call.out.pixel;
  t.res_stride = call.residual.pixel;
  t.offsets = offsets.data();
  const int per_group = p.panels_of_group();
  for (t.panel = call.panel_begin; t.panel < call.panel_end; ++t.panel) {
    const int g = t.panel / per_group, first = t.panel % per_group * kChannels;
    t.channels = std::min(kChannels, p.channels_of_group() - first);
    const int out_channel = g * p.channels_of_group() + first;
    for (int row = call.row_begin; row < call.row_end; ++row) {
      const int n = row / s.oh, oy = row % s.oh;
      const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, -s.pad_left) + g * (s.ic / s.groups);
      for (int x = 0; x < s.ow; x += kPixels) {
        t.in = in + x * t.in_stride;
        t.out = call.out.at(n, oy, x) + out_channel;
        t.residual = call.add ? call.residual.at(n, oy, x) + out_channel : nullptr;
        kTiles[std::min(kPixels, s.ow - x) - 1](call, t);
      }
    }
  }
}

}  // namespace int8d
