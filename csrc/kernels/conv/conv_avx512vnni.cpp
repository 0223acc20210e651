// Direct convolution, AVX512-VNNI. Tile: up to 14 pixels x 32 output channels.
//
// Registers: 28 accumulators, 2 weights, 1-2 broadcasts of 4 input bytes: 32. A step of 4 input bytes takes 2 loads,
// 14 broadcasting loads and 28 vpdpbusd; at 2 loads and 2 vpdpbusd a cycle that is 14 cycles, bound by vpdpbusd.
//
// The tile is two half-tiles of up to 7 pixels, each with its own base address, so that one code serves 14 pixels
// of a row and 2 x 7 pixels of a narrow map; 0..6 times the pixel stride needs three registers (s, 3s, 5s).
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <utility>

#include "../common/epilogue_avx512.h"
#include "pack.h"

namespace int8d {
namespace {

constexpr int kHalf = 7;

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
  const AddParams* add;
  uint32_t mask;  // of the panel's channels that exist
};

struct Strides {
  ptrdiff_t s, s3, s5;
};

template <int P>
inline const uint8_t* pixel(const uint8_t* base, const Strides& k) {
  if constexpr (P == 0) return base;
  if constexpr (P == 1) return base + k.s;
  if constexpr (P == 2) return base + 2 * k.s;
  if constexpr (P == 3) return base + k.s3;
  if constexpr (P == 4) return base + 4 * k.s;
  if constexpr (P == 5) return base + k.s5;
  if constexpr (P == 6) return base + 2 * k.s3;
}

// A pixels in the first half, B in the second, V vectors of 16 output channels.
template <int A, int B, int V>
void run_tile(const Tile& t) {
  __m512i acc[A + B][V];
  for (int p = 0; p < A + B; ++p)
    for (int v = 0; v < V; ++v) acc[p][v] = _mm512_load_si512(t.bias + 16 * v);

  Strides k{t.in_stride, 3 * t.in_stride, 5 * t.in_stride};
  asm("" : "+r"(k.s), "+r"(k.s3), "+r"(k.s5));  // keep the multiples in registers, not 14 pointers
  const int8_t* w = t.weight;
  const ptrdiff_t* offset = t.offsets;
  for (const ConvSegment& segment : t.packed->segments) {
    const uint8_t* a = t.in_a + *offset;
    const uint8_t* b = t.in_b + *offset++;
    for (int step = 0; step < segment.steps; ++step) {
      __m512i weight[V];
      for (int v = 0; v < V; ++v) weight[v] = _mm512_load_si512(w + 64 * v);
      auto one = [&](__m512i(&sums)[V], const uint8_t* in) {
        const __m512i x = avx512::broadcast4(in);
        for (int v = 0; v < V; ++v) sums[v] = _mm512_dpbusd_epi32(sums[v], x, weight[v]);
      };
      [&]<int... P>(std::integer_sequence<int, P...>) {
        (one(acc[P], pixel<P>(a, k)), ...);
      }(std::make_integer_sequence<int, A>());
      [&]<int... P>(std::integer_sequence<int, P...>) {
        (one(acc[A + P], pixel<P>(b, k)), ...);
      }(std::make_integer_sequence<int, B>());
      a += 4;
      b += 4;
      w += 128;
    }
  }

  const ConvPacked& p = *t.packed;
  const avx512::Clamp clamp(p.lo, p.hi, p.out_zp);
  for (int v = 0; v < V; ++v) {
    const __m512 m = _mm512_load_ps(t.multiplier + 16 * v);
    const __mmask16 mask = static_cast<__mmask16>(t.mask >> (16 * v));
    auto finish = [&](const __m512i& sum, const uint8_t* residual, uint8_t* out) {
      const __m512i q = avx512::requantize(sum, m, clamp);
      if (t.add) {
        const avx512::Add add(*t.add);
        avx512::store_bytes(out, avx512::add(q, avx512::load_bytes(residual, mask), add), add.clamp.zp, mask);
      } else {
        avx512::store_bytes(out, q, clamp.zp, mask);
      }
    };
    for (int i = 0; i < A; ++i)
      finish(acc[i][v], t.res_a + i * t.res_stride + 16 * v, t.out_a + i * t.out_stride + 16 * v);
    for (int i = 0; i < B; ++i)
      finish(acc[A + i][v], t.res_b + i * t.res_stride + 16 * v, t.out_b + i * t.out_stride + 16 * v);
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
  return std::max(2, kBandBytes / std::max(1, s.sh * s.iw * s.ic) & ~1);
}

struct Runner {
  const ConvCall& call;
  const ConvPacked& p;
  const ConvShape& s;
  std::array<ptrdiff_t, 256> offsets;
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
    }
  }

  int in_channel = 0, out_channel = 0, vectors = 2;
};

}  // namespace

void conv_u8s8_14x32_avx512vnni(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  Runner r{call, p, s, {}, {}};
  for (size_t i = 0; i < p.segments.size(); ++i)
    r.offsets[i] = p.segments[i].ky * s.dh * call.in.row + p.segments[i].kx * s.dw * call.in.pixel;
  r.t.in_stride = s.sw * call.in.pixel;
  r.t.out_stride = call.out.pixel;
  r.t.res_stride = call.residual.pixel;
  r.t.offsets = r.offsets.data();
  r.t.packed = &p;
  r.t.add = call.add;

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
