// Direct convolution, AVX2, exact. Tile: 4 pixels x 16 output channels.
//
// Registers: 8 accumulators, 2 weights, 1 broadcast, 2 products, 1 of ones: 14 of 16. A step of 4 input bytes takes
// 2 loads, 4 broadcasting loads and, for each of the 8 accumulators, vpmaddubsw + vpmaddwd + vpaddd.
// vpmaddubsw saturates at 16 bits: packing has split every pair of weights that could (pack.h), and the steps in
// `extras` add what was split off.
#include <immintrin.h>

#include <algorithm>
#include <array>

#include "pack.h"

namespace int8d {
namespace {

constexpr int kPixels = 4, kChannels = 16;

inline __m256i broadcast4(const uint8_t* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return _mm256_set1_epi32(bytes);
}

inline __m256i dot4(__m256i acc, __m256i x, __m256i w) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}

// Requantizes 8 sums; the result is v1, without its zero point.
inline __m256i scale(__m256i acc, const float* multiplier, __m256 hi, __m256i lo) {
  const __m256 v = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_loadu_ps(multiplier)), hi);
  return _mm256_max_epi32(_mm256_cvtps_epi32(v), lo);
}

// v1 + the residual's 8 bytes, with the sum's zero point.
inline __m256i add_residual(__m256i v1, const uint8_t* residual, const AddParams& a) {
  const __m256i r = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(residual)));
  const __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(v1), _mm256_set1_ps(a.f1));
  const __m256 u =
      _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(r, _mm256_set1_epi32(a.zp2))), _mm256_set1_ps(a.f2));
  const __m256 v = _mm256_min_ps(_mm256_add_ps(t, u), _mm256_set1_ps(static_cast<float>(a.hi - a.zp)));
  const __m256i q = _mm256_max_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(a.lo - a.zp));
  return _mm256_add_epi32(q, _mm256_set1_epi32(a.zp));
}

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
      const __m256i x = broadcast4(in + i * t.in_stride);
      acc[i][0] = dot4(acc[i][0], x, w0);
      acc[i][1] = dot4(acc[i][1], x, w1);
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

  const __m256 hi = _mm256_set1_ps(static_cast<float>(p.hi - p.out_zp));
  const __m256i lo = _mm256_set1_epi32(p.lo - p.out_zp), zp = _mm256_set1_epi32(p.out_zp);
  const float* multiplier = p.multiplier.data() + t.panel * kChannels;
  for (int i = 0; i < P; ++i) {
    __m256i q[2];
    uint8_t residual[kChannels];
    if (call.add) __builtin_memcpy(residual, t.residual + i * t.res_stride, t.channels);
    for (int v = 0; v < 2; ++v) {
      const __m256i v1 = scale(acc[i][v], multiplier + 8 * v, hi, lo);
      q[v] = call.add ? add_residual(v1, residual + 8 * v, *call.add) : _mm256_add_epi32(v1, zp);
    }
    // 16 x s32 in 0..255 to bytes: the packs work within 128-bit lanes, the permutation restores the order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(q[0], q[1]), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    uint8_t* out = t.out + i * t.out_stride;
    if (t.channels == kChannels) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    } else {  // another panel, or another thread, owns what comes next
      alignas(16) uint8_t whole[kChannels];
      _mm_store_si128(reinterpret_cast<__m128i*>(whole), bytes);
      __builtin_memcpy(out, whole, t.channels);
    }
  }
}

constexpr std::array kTiles = {run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>};

}  // namespace

void conv_run_avx2(const ConvCall& call) {
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
