// Matrix product, AVX2, exact. Tile: up to 2 rows x 32 features.
//
// Registers: 8 sums, 1 weight, 2 broadcasts, 2 products, 1 of ones. As in conv_avx2.cpp, what packing split off comes
// in extra steps.
#include <algorithm>

#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kVectors = 4;

template <int M>
void run_tile(const LinearCall& call, int m, int panel) {
  const ConvPacked& p = *call.packed;
  const size_t k = static_cast<size_t>(p.shape.ic), n = static_cast<size_t>(p.shape.oc);
  const uint8_t* in = call.in + static_cast<size_t>(m) * k;
  __m256i acc[M][kVectors];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; ++v)
      acc[i][v] = _mm256_load_si256(reinterpret_cast<const __m256i*>(p.bias.data() + panel * 32 + 8 * v));
  auto step = [&](const uint8_t* x, const int8_t* w) {
    __m256i row[M];
    for (int i = 0; i < M; ++i) row[i] = avx2::broadcast4(x + static_cast<size_t>(i) * k);
    for (int v = 0; v < kVectors; ++v) {
      const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * v));
      for (int i = 0; i < M; ++i) acc[i][v] = avx2::dot4(acc[i][v], row[i], weight);
    }
  };
  const int8_t* w = p.weight.data() + static_cast<size_t>(panel) * p.steps * 128;
  for (int s = 0; s < p.steps; ++s) step(in + 4 * s, w + static_cast<size_t>(s) * 128);
  for (int e = p.extra_begin[panel]; e < p.extra_begin[panel + 1]; ++e)
    step(in + 4 * p.extras[e].step, p.extra_weight.data() + static_cast<size_t>(e) * 128);

  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < kVectors; v += 2) {
      const int first = panel * 32 + 8 * v, left = p.shape.oc - first;
      if (left <= 0) break;
      __m256i q[2];
      for (int j = 0; j < 2; ++j)
        q[j] = _mm256_add_epi32(avx2::requantize(acc[i][v + j], p.multiplier.data() + first + 8 * j, clamp), clamp.zp);
      avx2::store_bytes(call.out + static_cast<size_t>(m + i) * n + first, avx2::pack_bytes(q[0], q[1]), left);
    }
}

}  // namespace

void linear_u8s8_2x32_avx2(const LinearCall& call) {
  for (int panel = call.panel_begin; panel < call.panel_end; ++panel) {
    int m = call.m_begin;
    for (; m + 2 <= call.m_end; m += 2) run_tile<2>(call, m, panel);
    if (m < call.m_end) run_tile<1>(call, m, panel);
  }
}

}  // namespace int8d
