// Exact Winograd convolution (winograd.h), AVX512-VNNI.
//
// A chunk of tiles at a time: its inputs are transformed, 32 channels an instruction, to V [plane][tile][channel];
// then, for 32 output channels at a time, every plane is a product of V with U [plane][channel / 2][32][2] to
// M [plane][tile][32], by vpdpwssd with 14 tiles x 32 channels in registers as in conv_avx512vnni.cpp (28 sums, 2
// weights, 1-2 broadcasts); and M is transformed to outputs, 16 channels an instruction.
// vpdpwssd does half the products of vpdpbusd, Winograd needs a quarter: at best twice as fast as the direct form.
#include <algorithm>
#include <array>
#include <optional>

#include "../common/epilogue_avx512.h"
#include "halves.h"
#include "winograd.h"

namespace int8d {
namespace {

using V512 = __m512i;

// The planes of a dimension's points, for F(4) and F(2).
template <int N>
constexpr int plane_of(int i) {
  return N == 4 ? i : i == 3 ? 5 : i;
}

INT8D_INLINE inline V512 twice(V512 v) { return _mm512_add_epi16(v, v); }

template <int N>
INT8D_INLINE inline void transform_input(const V512 (&d)[N + 2], V512 (&v)[N + 2]) {
  if constexpr (N == 4) {
    const V512 a = _mm512_sub_epi16(d[4], _mm512_slli_epi16(d[2], 2)),
               b = _mm512_sub_epi16(d[3], _mm512_slli_epi16(d[1], 2));
    const V512 c = _mm512_sub_epi16(d[4], d[2]), e = twice(_mm512_sub_epi16(d[3], d[1]));
    v[0] = _mm512_add_epi16(_mm512_slli_epi16(_mm512_sub_epi16(d[0], d[2]), 2), c);
    v[1] = _mm512_add_epi16(a, b);
    v[2] = _mm512_sub_epi16(a, b);
    v[3] = _mm512_add_epi16(c, e);
    v[4] = _mm512_sub_epi16(c, e);
    v[5] = _mm512_sub_epi16(_mm512_sub_epi16(d[5], d[3]), twice(e));
  } else {
    v[0] = _mm512_sub_epi16(d[0], d[2]);
    v[1] = _mm512_add_epi16(d[1], d[2]);
    v[2] = _mm512_sub_epi16(d[2], d[1]);
    v[3] = _mm512_sub_epi16(d[3], d[1]);
  }
}

template <int N>
INT8D_INLINE inline void transform_output(const V512 (&m)[N + 2], V512 (&y)[N]) {
  if constexpr (N == 4) {
    const V512 a = _mm512_add_epi32(m[1], m[2]), b = _mm512_sub_epi32(m[1], m[2]);
    const V512 c = _mm512_add_epi32(m[3], m[4]), d = _mm512_sub_epi32(m[3], m[4]);
    y[0] = _mm512_add_epi32(_mm512_add_epi32(m[0], a), c);
    y[1] = _mm512_add_epi32(b, _mm512_slli_epi32(d, 1));
    y[2] = _mm512_add_epi32(a, _mm512_slli_epi32(c, 2));
    y[3] = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_slli_epi32(d, 3)), _mm512_slli_epi32(m[5], 2));
  } else {
    auto three = [](V512 v) { return _mm512_add_epi32(v, _mm512_slli_epi32(v, 1)); };
    y[0] = _mm512_sub_epi32(_mm512_slli_epi32(m[0], 2), three(_mm512_add_epi32(m[1], m[2])));
    y[1] = _mm512_add_epi32(three(_mm512_sub_epi32(m[2], m[1])), _mm512_slli_epi32(m[3], 2));
  }
}

// A chunk: tiles first .. last - 1, and where their values lie.
struct Chunk {
  const ConvCall& call;
  const ConvShape& s;
  WinogradGrid grid;
  uint8_t *v, *m;
  size_t v_plane, m_plane;
  int first, last;

  // The tile's place among the chunk's in a plane; by whether the plane's row and column points are 2 or -2.
  struct Indices {
    int at[2][2];
    int of(int i, int j) const { return at[is_whole(i)][is_whole(j)]; }
  };
  static bool is_whole(int point) { return point == 3 || point == 4; }
  Indices indices(int tile) const {
    Indices x;
    for (int r = 0; r < 2; ++r)
      for (int c = 0; c < 2; ++c) x.at[r][c] = grid.before(tile, r, c) - grid.before(first, r, c);
    return x;
  }
};

// One tile of R x C outputs.
template <int R, int C>
void transform_inputs(const Chunk& k, int n, int y, int x, const Chunk::Indices& at) {
  const View& in = k.call.in;
  const uint8_t* from = in.at(n, y - k.s.pad_top, x - k.s.pad_left);
  const size_t tile = static_cast<size_t>(k.s.ic) * 2;
  uint8_t* to[R + 2][C + 2];
  for (int i = 0; i < R + 2; ++i)
    for (int j = 0; j < C + 2; ++j) {
      const int pi = plane_of<R>(i), pj = plane_of<C>(j);
      to[i][j] = k.v + static_cast<size_t>(pi * 6 + pj) * k.v_plane + static_cast<size_t>(at.of(pi, pj)) * tile;
    }
  for (int c = 0; c < k.s.ic; c += 32) {
    V512 columns[R + 2][C + 2];
    for (int j = 0; j < C + 2; ++j) {
      V512 d[R + 2], v[R + 2];
      for (int i = 0; i < R + 2; ++i)
        d[i] = _mm512_cvtepu8_epi16(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * in.row + j * in.pixel + c)));
      transform_input<R>(d, v);
      for (int i = 0; i < R + 2; ++i) columns[i][j] = v[i];
    }
    for (int i = 0; i < R + 2; ++i) {
      V512 v[C + 2];
      transform_input<C>(columns[i], v);
      for (int j = 0; j < C + 2; ++j) _mm512_store_si512(to[i][j] + 2 * c, v[j]);
    }
  }
}

// M[row][32] of `Rows` tiles: `steps` pairs of channels. Weights that lie `ahead` further on are fetched to L2.
template <int Rows>
void multiply(const uint8_t* v, ptrdiff_t stride, const int16_t* u, int steps, size_t ahead, uint8_t* m) {
  constexpr int A = Rows < kHalf ? Rows : kHalf;
  V512 acc[Rows][2];
  unroll<Rows>([&](auto i) INT8D_INLINE { acc[i][0] = acc[i][1] = _mm512_setzero_si512(); });
  const Strides k(stride);
  const uint8_t *a = v, *b = v + kHalf * stride;
  for (int step = 0; step < steps; ++step) {
    const V512 u0 = _mm512_load_si512(u), u1 = _mm512_load_si512(u + 32);
    unroll<Rows>([&](auto i) INT8D_INLINE {
      const V512 x = avx512::broadcast4(at_row<decltype(i)::value, A>(a, b, k));
      acc[i][0] = _mm512_dpwssd_epi32(acc[i][0], x, u0);
      acc[i][1] = _mm512_dpwssd_epi32(acc[i][1], x, u1);
    });
    _mm_prefetch(reinterpret_cast<const char*>(u + ahead), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(u + ahead + 32), _MM_HINT_T1);
    a += 4;
    b += 4;
    u += 64;
  }
  unroll<Rows>([&](auto i) INT8D_INLINE {
    _mm512_store_si512(m + i * 128, acc[i][0]);
    _mm512_store_si512(m + i * 128 + 64, acc[i][1]);
  });
}

using Multiply = void (*)(const uint8_t*, ptrdiff_t, const int16_t*, int, size_t, uint8_t*);
constexpr std::array<Multiply, 15> kMultiply = {nullptr,      multiply<1>,  multiply<2>,  multiply<3>,  multiply<4>,
                                                multiply<5>,  multiply<6>,  multiply<7>,  multiply<8>,  multiply<9>,
                                                multiply<10>, multiply<11>, multiply<12>, multiply<13>, multiply<14>};

struct Epilogue {
  avx512::Finish finish;
  std::optional<avx512::Sum> sum;
};

inline __m128i load16(const uint8_t* p, __mmask16 mask) {
  if (mask == 0xffff) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_maskz_loadu_epi8(mask, p);
}

inline void store16(uint8_t* out, __m128i bytes, __mmask16 mask) {
  if (mask == 0xffff)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  else
    _mm_mask_storeu_epi8(out, mask, bytes);
}

// One tile of R x C outputs, for the 32 channels of a panel.
template <int R, int C>
void transform_outputs(const Chunk& k, int n, int y, int x, const Chunk::Indices& at, int panel, const Epilogue& e) {
  const ConvPacked& p = *k.call.packed;
  for (int half = 0; half < 2; ++half) {
    const int oc = panel * 32 + half * 16, channels = k.s.oc - oc;
    if (channels <= 0) return;
    const __mmask16 mask = static_cast<__mmask16>(channels >= 16 ? 0xffff : (1u << channels) - 1);
    V512 rows[C + 2][R];
    for (int j = 0; j < C + 2; ++j) {
      V512 m[R + 2];
      for (int i = 0; i < R + 2; ++i) {
        const int pi = plane_of<R>(i), pj = plane_of<C>(j);
        m[i] = _mm512_load_si512(k.m + static_cast<size_t>(pi * 6 + pj) * k.m_plane +
                                 static_cast<size_t>(at.of(pi, pj)) * 128 + half * 64);
      }
      transform_output<R>(m, rows[j]);
    }
    const V512 bias = _mm512_load_si512(p.bias.data() + oc), inverse = _mm512_set1_epi32(0x38E38E39);
    const __m512 multiplier = _mm512_load_ps(p.multiplier.data() + oc);
    for (int i = 0; i < R; ++i) {
      V512 m[C + 2], q[4] = {};
      for (int j = 0; j < C + 2; ++j) m[j] = rows[j][i];
      V512 sums[C];
      transform_output<C>(m, sums);
      const uint8_t* residual = e.sum ? k.call.residual.at(n, y + i, x) + oc : nullptr;
      for (int j = 0; j < C; ++j) {
        const V512 acc = _mm512_add_epi32(_mm512_mullo_epi32(sums[j], inverse), bias);
        q[j] = e.sum ? avx512::sum_narrow(acc, multiplier, load16(residual + j * k.call.residual.pixel, mask), *e.sum)
                     : avx512::round_narrow(acc, multiplier);
      }
      const V512 bytes = avx512::finish4(q[0], q[1], q[2], q[3], e.finish);
      uint8_t* out = k.call.out.at(n, y + i, x) + oc;
      unroll<C>([&](auto j)
                    INT8D_INLINE { store16(out + j * k.call.out.pixel, _mm512_extracti32x4_epi32(bytes, j), mask); });
    }
  }
}

// run(n, y, x, its place) for every tile of a chunk, by the form that suits it.
template <typename F44, typename F42, typename F24, typename F22>
void each_tile(const Chunk& k, F44 f44, F42 f42, F24 f24, F22 f22) {
  for (int tile = k.first; tile < k.last; ++tile) {
    const int n = tile / k.grid.tiles(), row = tile % k.grid.tiles() / k.grid.columns, column = tile % k.grid.columns;
    const Chunk::Indices at = k.indices(tile);
    const bool half_row = k.grid.is_half_row(row), half_column = k.grid.is_half_column(column);
    if (half_row)
      half_column ? f22(n, row * 4, column * 4, at) : f24(n, row * 4, column * 4, at);
    else
      half_column ? f42(n, row * 4, column * 4, at) : f44(n, row * 4, column * 4, at);
  }
}

void run_chunk(const Chunk& k, const Epilogue& e) {
  using Indices = Chunk::Indices;
  each_tile(
      k, [&](int n, int y, int x, const Indices& at) { transform_inputs<4, 4>(k, n, y, x, at); },
      [&](int n, int y, int x, const Indices& at) { transform_inputs<4, 2>(k, n, y, x, at); },
      [&](int n, int y, int x, const Indices& at) { transform_inputs<2, 4>(k, n, y, x, at); },
      [&](int n, int y, int x, const Indices& at) { transform_inputs<2, 2>(k, n, y, x, at); });
  const int steps = k.s.ic / 2;
  const ptrdiff_t stride = static_cast<ptrdiff_t>(k.s.ic) * 2;
  for (int panel = k.call.panel_begin; panel < k.call.panel_end; ++panel) {
    const int16_t* u = k.call.packed->weight16.data() + static_cast<size_t>(panel) * kPlanes * steps * 64;
    for (int plane = 0; plane < kPlanes; ++plane, u += static_cast<size_t>(steps) * 64) {
      const bool r = Chunk::is_whole(plane / 6), c = Chunk::is_whole(plane % 6);
      const int count = k.grid.before(k.last, r, c) - k.grid.before(k.first, r, c);
      const int blocks = (count + 2 * kHalf - 1) / (2 * kHalf);
      for (int block = 0; block < blocks; ++block) {
        const int begin = count * block / blocks, end = count * (block + 1) / blocks;
        kMultiply[static_cast<size_t>(end - begin)](
            k.v + static_cast<size_t>(plane) * k.v_plane + static_cast<size_t>(begin * stride), stride, u, steps,
            static_cast<size_t>(steps) * 128,
            k.m + static_cast<size_t>(plane) * k.m_plane + static_cast<size_t>(begin) * 128);
      }
    }
    each_tile(
        k, [&](int n, int y, int x, const Indices& at) { transform_outputs<4, 4>(k, n, y, x, at, panel, e); },
        [&](int n, int y, int x, const Indices& at) { transform_outputs<4, 2>(k, n, y, x, at, panel, e); },
        [&](int n, int y, int x, const Indices& at) { transform_outputs<2, 4>(k, n, y, x, at, panel, e); },
        [&](int n, int y, int x, const Indices& at) { transform_outputs<2, 2>(k, n, y, x, at, panel, e); });
  }
}

}  // namespace

void conv_u8s8_winograd_avx512vnni(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const Output output = p.output(call);
  Epilogue e{avx512::Finish(output), {}};
  if (call.add) e.sum.emplace(output, *call.add);
  const WinogradScratch scratch(p.shape);
  const int total = call.row_end - call.row_begin, most = winograd_chunk(p.shape), chunks = (total + most - 1) / most;
  for (int chunk = 0; chunk < chunks; ++chunk)
    run_chunk(
        {call, p.shape, WinogradGrid(p.shape), call.scratch, call.scratch + kPlanes * scratch.v_plane, scratch.v_plane,
         scratch.m_plane, call.row_begin + total * chunk / chunks, call.row_begin + total * (chunk + 1) / chunks},
        e);
}

}  // namespace int8d
