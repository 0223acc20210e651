// Direct convolution, AVX512-VNNI. Tile: up to 14 pixels x 32 output channels.
//
// Registers: 28 accumulators, 2 weights, 1-2 broadcasts of 4 input bytes: 32. A step of 4 input bytes takes 2 loads,
// 14 broadcasting loads and 28 vpdpbusd; at 2 loads and 2 vpdpbusd a cycle that is 14 cycles, bound by vpdpbusd.
//
// The tile is two half-tiles of up to 7 pixels, each with its own base address (halves.h), so that one code serves 14
// pixels of a row and 2 x 7 pixels of a narrow map.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <utility>

#include "../common/epilogue_avx512.h"
#include "halves.h"
#include "pack.h"

namespace int8d {
namespace {

using avx512::Epilogue;

struct Tile {
  const uint8_t *in_a, *in_b;  // first tap of each half's first pixel
  ptrdiff_t in_stride;         // from pixel to pixel
  uint8_t *out_a, *out_b;
  const uint8_t *res_a, *res_b;
  ptrdiff_t out_stride, res_stride;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  const ptrdiff_t* offsets;  // of each segment, from the first tap
  const ConvPacked* packed;
  const Epilogue* epilogue;
  const uint8_t* ahead;  // what is fetched to L2, a line a step
  ptrdiff_t line;        // 64, or, where there is nothing to fetch, 0
  uint32_t mask;         // of the panel's channels that exist

  const uint8_t* residual(int p, int a) const { return p < a ? res_a + p * res_stride : res_b + (p - a) * res_stride; }
};

struct Outputs {
  uint8_t *a, *b;
  ptrdiff_t stride;
  // Of pixel p, where the first half has `first`.
  uint8_t* at(int p, int first) const { return p < first ? a + p * stride : b + (p - first) * stride; }
};

// The rare case, element by element: multipliers so large that rounding before clamping could leave int32.
[[gnu::noinline]] void finish_wide(const Tile& t, const int32_t* sums, int a, int pixels, int channels) {
  const Outputs out{t.out_a, t.out_b, t.out_stride};
  for (int p = 0; p < pixels; ++p)
    for (int c = 0; c < channels; ++c)
      if (t.mask >> c & 1) {
        const uint8_t residual = t.epilogue->output.add ? t.residual(p, a)[c] : 0;
        out.at(p, a)[c] = finish(sums[p * channels + c], t.multiplier[c], residual, t.epilogue->output);
      }
}

// A pixels in the first half, B in the second, V vectors of 16 output channels.
template <int A, int B, int V>
void run_tile(const Tile& t) {
  __m512i acc[A + B][V];
  unroll<V>([&](auto v) INT8D_INLINE {
    const __m512i bias = _mm512_load_si512(t.bias + 16 * v);
    unroll<A + B>([&](auto p) INT8D_INLINE { acc[p][v] = bias; });
  });

  const Strides k(t.in_stride);
  const int8_t* w = t.weight;
  const uint8_t* ahead = t.ahead;
  const ptrdiff_t line = t.line;
  const ptrdiff_t* offset = t.offsets;
  for (const ConvSegment& segment : t.packed->segments) {
    const uint8_t* a = t.in_a + *offset;
    const uint8_t* b = t.in_b + *offset++;
    for (int step = 0; step < segment.steps; ++step) {
      __m512i weight[V];
      unroll<V>([&](auto v) INT8D_INLINE { weight[v] = _mm512_load_si512(w + 64 * v); });
      unroll<A + B>([&](auto p) INT8D_INLINE {
        const __m512i x = avx512::broadcast4(at_row<decltype(p)::value, A>(a, b, k));
        unroll<V>([&](auto v) INT8D_INLINE { acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], x, weight[v]); });
      });
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      ahead += line;
      a += 4;
      b += 4;
      w += 128;
    }
  }

  const Epilogue& e = *t.epilogue;
  if (!e.narrow) [[unlikely]] {
    alignas(64) int32_t sums[A + B][16 * V];
    unroll<A + B>([&](auto p) INT8D_INLINE {
      unroll<V>([&](auto v) INT8D_INLINE { _mm512_store_si512(sums[p] + 16 * v, acc[p][v]); });
    });
    finish_wide(t, &sums[0][0], A, A + B, 16 * V);
    return;
  }
  __m512 m[V];
  unroll<V>([&](auto v) INT8D_INLINE { m[v] = _mm512_load_ps(t.multiplier + 16 * v); });
  // Four vectors, 2 or 4 pixels, are finished and packed together.
  constexpr int kPixels = 4 / V;
  const Outputs out{t.out_a, t.out_b, t.out_stride};
  const uint32_t mask = t.mask;
  auto groups = [&](const avx512::Finish& finish, auto round) INT8D_INLINE {
    unroll<(A + B + kPixels - 1) / kPixels>([&](auto group) INT8D_INLINE {
      constexpr int first = group * kPixels;
      auto q = [&](auto i) INT8D_INLINE {
        constexpr int p = first + i / V, v = i % V;
        if constexpr (p < A + B)
          return round(acc[p][v], m[v], p, v);
        else
          return _mm512_setzero_si512();
      };
      using std::integral_constant;
      const __m512i bytes = avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()),
                                            q(integral_constant<int, 2>()), q(integral_constant<int, 3>()), finish);
      unroll<std::min(kPixels, A + B - first)>([&](auto i) INT8D_INLINE {
        if constexpr (V == 2)
          avx512::store32(out.at(first + i, A), _mm512_extracti64x4_epi64(bytes, i), mask);
        else
          avx512::store16(out.at(first + i, A), _mm512_extracti32x4_epi32(bytes, i), mask);
      });
    });
  };
  if (e.sum) {
    const avx512::Sum& sum = *e.sum;  // read from memory where used: there is no register left for it
    groups(e.finish, [&](__m512i x, __m512 multiplier, int p, int v) INT8D_INLINE {
      return avx512::sum_narrow(x, multiplier, avx512::load16(t.residual(p, A) + 16 * v, mask >> (16 * v)), sum);
    });
  } else {
    const avx512::Finish finish = e.finish;
    groups(finish,
           [&](__m512i x, __m512 multiplier, int, int) INT8D_INLINE { return avx512::round_narrow(x, multiplier); });
  }
}

using TileFunction = void (*)(const Tile&);

// By pixels of each half (the first is full before the second has any, except in 2 x n tiles), and vectors.
template <int V>
constexpr std::array<TileFunction, 15> kSingle = {
    nullptr,           run_tile<1, 0, V>, run_tile<2, 0, V>, run_tile<3, 0, V>, run_tile<4, 0, V>,
    run_tile<5, 0, V>, run_tile<6, 0, V>, run_tile<7, 0, V>, run_tile<7, 1, V>, run_tile<7, 2, V>,
    run_tile<7, 3, V>, run_tile<7, 4, V>, run_tile<7, 5, V>, run_tile<7, 6, V>, run_tile<7, 7, V>};
template <int V>
constexpr std::array<TileFunction, 8> kDouble = {nullptr,           run_tile<1, 1, V>, run_tile<2, 2, V>,
                                                 run_tile<3, 3, V>, run_tile<4, 4, V>, run_tile<5, 5, V>,
                                                 run_tile<6, 6, V>, run_tile<7, 7, V>};

// Rows that are worked on together, panel by panel: their input should stay in L2 beside the panel's weights.
int band_rows(const ConvShape& s) {
  constexpr int kBandBytes = 256 * 1024;
  return std::max(2, s.band(kBandBytes) & ~1);
}

struct Runner {
  const ConvCall& call;
  const ConvPacked& p;
  const ConvShape& s;
  Tile t;

  void panel(int index) {
    const int per_group = p.panels_of_group(), g = index / per_group, first = index % per_group * 32;
    const int channels = std::min(32, p.channels_of_group() - first);
    t.weight = p.weight.data() + static_cast<size_t>(index) * p.steps * 128;
    t.bias = p.bias.data() + index * 32;
    t.multiplier = p.multiplier.data() + index * 32;
    t.mask = channels == 32 ? ~0u : (1u << channels) - 1;
    in_channel = g * (s.ic / s.groups);
    out_channel = g * p.channels_of_group() + first;
    vectors = channels > 16 ? 2 : 1;
  }

  // `rows` is 1 or 2: the second row, where there is one, is the tile's second half.
  void row(int y, int rows) {
    const int n = y / s.oh, oy = y % s.oh;
    const uint8_t* in = call.in.at(n, oy * s.sh - s.pad_top, -s.pad_left) + in_channel;
    uint8_t* out = call.out.at(n, oy, 0) + out_channel;
    const uint8_t* res = call.add ? call.residual.at(n, oy, 0) + out_channel : nullptr;
    const int widest = rows == 2 ? kHalf : 2 * kHalf;
    for (int x = 0; x < s.ow; x += widest) {
      const int width = std::min(widest, s.ow - x);
      t.in_a = in + x * t.in_stride;
      t.out_a = out + x * t.out_stride;
      t.res_a = res ? res + x * t.res_stride : nullptr;
      t.in_b = t.in_a + (rows == 2 ? s.sh * call.in.row : kHalf * t.in_stride);
      t.out_b = t.out_a + (rows == 2 ? call.out.row : kHalf * t.out_stride);
      t.res_b = res ? t.res_a + (rows == 2 ? call.residual.row : kHalf * t.res_stride) : nullptr;
      const TileFunction run =
          rows == 2 ? (vectors == 2 ? kDouble<2> : kDouble<1>)[width] : (vectors == 2 ? kSingle<2> : kSingle<1>)[width];
      run(t);
      t.ahead += p.steps * t.line;
      if (t.ahead >= end_ahead) t.line = 0;
    }
  }

  const uint8_t* end_ahead = call.ahead.data() + call.ahead.size();
  int in_channel = 0, out_channel = 0, vectors = 2;
};

}  // namespace

void conv_u8s8_14x32_avx512vnni(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Epilogue epilogue(p.output(call), p.narrow);
  Runner r{call, p, s, {}};
  std::array<ptrdiff_t, kMostSegments> offsets;
  for (size_t i = 0; i < p.segments.size(); ++i) offsets[i] = p.segments[i].offset(s, call.in);
  r.t.in_stride = s.sw * call.in.pixel;
  r.t.out_stride = call.out.pixel;
  r.t.res_stride = call.residual.pixel;
  r.t.offsets = offsets.data();
  r.t.packed = &p;
  r.t.epilogue = &epilogue;
  const bool fetches = !call.ahead.empty();
  r.t.ahead = fetches ? call.ahead.data() : reinterpret_cast<const uint8_t*>(p.weight.data());
  r.t.line = fetches ? 64 : 0;

  // Maps whose width leaves a half tile empty take two rows at a time.
  const int tail = s.ow % (2 * kHalf);
  const bool pairs = tail > 0 && tail <= kHalf;
  const int band = band_rows(s);
  for (int begin = call.row_begin; begin < call.row_end; begin += band) {
    const int end = std::min(begin + band, call.row_end);
    for (int panel = call.panel_begin; panel < call.panel_end; ++panel) {
      r.panel(panel);
      for (int y = begin; y < end;) {
        const int rows = pairs && y + 1 < end && y % s.oh + 1 < s.oh ? 2 : 1;
        r.row(y, rows);
        y += rows;
      }
    }
  }
}

}  // namespace int8d
