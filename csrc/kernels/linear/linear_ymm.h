// Matrix product in registers of 256 bits: AVX2 and AVX-VNNI. Tile: up to 2 rows x 32 features.
//
// Registers: 8 sums, 1 weight, 2 broadcasts, and what `Dot` needs. With one row, even and odd steps keep sums of their
// own, as in linear_avx512vnni.cpp. What packing split off (conv/pack.h) comes in extra steps.
#pragma once
#include <algorithm>

#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kVectors = 4;

template <typename Dot, int M>
void run_tile(const LinearCall& call, int m, int panel) {
  const ConvPacked& p = *call.packed;
  const size_t k = static_cast<size_t>(p.shape.ic), n = static_cast<size_t>(p.shape.oc);
  const uint8_t* in = call.in + static_cast<size_t>(m) * k;
  constexpr int kChains = M == 1 ? 2 : 1;
  __m256i acc[kChains][M][kVectors];
  for (int c = 0; c < kChains; ++c)
    for (int i = 0; i < M; ++i)
      for (int v = 0; v < kVectors; ++v)
        acc[c][i][v] = c ? _mm256_setzero_si256()
                         : _mm256_load_si256(reinterpret_cast<const __m256i*>(p.bias.data() + panel * 32 + 8 * v));
  auto step = [&](int chain, const uint8_t* x, const int8_t* w) {
    __m256i row[M];
    for (int i = 0; i < M; ++i) row[i] = avx2::broadcast4(x + static_cast<size_t>(i) * k);
    for (int v = 0; v < kVectors; ++v) {
      const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * v));
      for (int i = 0; i < M; ++i) acc[chain][i][v] = Dot::dot(acc[chain][i][v], row[i], weight);
    }
  };
  const int8_t* w = p.weight.data() + static_cast<size_t>(panel) * p.steps * 128;
  int s = 0;
  for (; s + kChains <= p.steps; s += kChains)
    for (int c = 0; c < kChains; ++c) step(c, in + 4 * (s + c), w + static_cast<size_t>(s + c) * 128);
  if (s < p.steps) step(0, in + 4 * s, w + static_cast<size_t>(s) * 128);
  for (int e = p.extra_begin[panel]; e < p.extra_begin[panel + 1]; ++e)
    step(0, in + 4 * p.extras[e].step, p.extra_weight.data() + static_cast<size_t>(e) * 128);
  if constexpr (kChains == 2)
    for (int v = 0; v < kVectors; ++v) acc[0][0][v] = _mm256_add_epi32(acc[0][0][v], acc[1][0][v]);

  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; v += 2) {
      const int first = panel * 32 + 8 * v, left = p.shape.oc - first;
      if (left <= 0) break;
      __m256i q[2];
      for (int j = 0; j < 2; ++j)
        q[j] =
            _mm256_add_epi32(avx2::requantize(acc[0][i][v + j], p.multiplier.data() + first + 8 * j, clamp), clamp.zp);
      avx2::store_bytes(call.out + static_cast<size_t>(m + i) * n + first, avx2::pack_bytes(q[0], q[1]), left);
    }
}

template <typename Dot>
void run_linear(const LinearCall& call) {
  for (int panel = call.panel_begin; panel < call.panel_end; ++panel) {
    int m = call.m_begin;
    for (; m + 2 <= call.m_end; m += 2) run_tile<Dot, 2>(call, m, panel);
    if (m < call.m_end) run_tile<Dot, 1>(call, m, panel);
  }
}

}  // namespace
}  // namespace int8d
