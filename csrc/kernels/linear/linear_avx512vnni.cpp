// Matrix product, AVX512-VNNI. Tile: up to 4 rows x 64 features.
//
// Registers: up to 16 sums, 4 weights, 1 broadcast. A step of 4 inputs takes 4 loads of weights and a broadcast a row;
// with one row it is bound by the 256 bytes of weights that it loads, 2 cycles, so even and odd steps keep sums of
// their own: 8 chains hide the 4 cycles of a vpdpbusd.
#include <algorithm>
#include <array>

#include "../common/epilogue_avx512.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kRows = 4, kVectors = 4;

template <int M>
void run_tile(const LinearCall& call, int m, int panel) {
  const ConvPacked& p = *call.packed;
  constexpr int kChains = M == 1 ? 2 : 1;
  const size_t k = static_cast<size_t>(p.shape.ic), n = static_cast<size_t>(p.shape.oc);
  const uint8_t* in = call.in + static_cast<size_t>(m) * k;
  const int8_t* w = p.weight.data() + static_cast<size_t>(panel) * p.steps * 256;
  __m512i acc[kChains][M][kVectors];
  for (int c = 0; c < kChains; ++c)
    for (int i = 0; i < M; ++i)
      for (int v = 0; v < kVectors; ++v)
        acc[c][i][v] = c ? _mm512_setzero_si512() : _mm512_load_si512(p.bias.data() + panel * 64 + 16 * v);
  auto one = [&](int chain, const uint8_t* from, const int8_t* weight) {
    for (int i = 0; i < M; ++i) {
      const __m512i x = avx512::broadcast4(from + static_cast<size_t>(i) * k);
      for (int v = 0; v < kVectors; ++v)
        acc[chain][i][v] = _mm512_dpbusd_epi32(acc[chain][i][v], x, _mm512_load_si512(weight + 64 * v));
    }
  };
  int step = 0;
  const uint8_t* x = in;
  auto next = [&](int chain) {
    one(chain, x, w);
    x += 4;
    w += 256;
  };
  for (; step + kChains <= p.steps; step += kChains)
    for (int c = 0; c < kChains; ++c) next(c);
  for (; step < p.steps; ++step) next(0);
  // What packing split off (conv/pack.h).
  for (int e = p.extra_begin[panel]; e < p.extra_begin[panel + 1]; ++e)
    one(0, in + 4 * p.extras[e].step, p.extra_weight.data() + static_cast<size_t>(e) * 256);

  const avx512::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; ++v) {
      const int first = panel * 64 + 16 * v, left = p.shape.oc - first;
      if (left <= 0) break;
      const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      __m512i sum = acc[0][i][v];
      if constexpr (kChains == 2) sum = _mm512_add_epi32(sum, acc[1][i][v]);
      avx512::store_bytes(call.out + static_cast<size_t>(m + i) * n + first,
                          avx512::requantize(sum, _mm512_load_ps(p.multiplier.data() + first), clamp), clamp.zp, mask);
    }
}

constexpr std::array kTiles = {run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>};

}  // namespace

void linear_u8s8_4x64_avx512vnni(const LinearCall& call) {
  for (int panel = call.panel_begin; panel < call.panel_end; ++panel)
    for (int m = call.m_begin; m < call.m_end; m += kRows) kTiles[std::min(kRows, call.m_end - m) - 1](call, m, panel);
}

}  // namespace int8d
