// Product of two activations, AVX512-VNNI. Tile: up to 14 rows x 32 columns.
//
// Registers: 28 accumulators, 2 vectors of b, 1-2 broadcasts of 4 bytes of a: 32. A step of 4 inputs takes 2 loads, 14
// broadcasting loads and 28 vpdpbusd, as in conv_avx512vnni.cpp: 14 cycles, bound by vpdpbusd. The rows of a call are
// cut evenly; a last panel of up to 16 columns has tiles of its own.
#include <array>

#include "../conv/halves.h"
#include "matmul_avx512.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kRows = 2 * kHalf;

struct Tile {
  const uint8_t* a;
  ptrdiff_t k, n;
  uint8_t* out;
  const int8_t* b;
  const int32_t *columns, *rows;
  int steps;
  uint32_t mask;  // of the panel's columns that exist
  const Epilogue* epilogue;
};

// As _mm512_dpbusd_epi32, with which g++ 12 stores every sum at every step.
INT8D_INLINE inline void add_dot(__m512i& sum, __m512i x, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(b));
}

// A rows in the first half, B in the second, V vectors of 16 columns.
template <int A, int B, int V>
void run_tile(const Tile& t) {
  __m512i acc[A + B][V];
  unroll<V>([&](auto v) INT8D_INLINE {
    const __m512i column = _mm512_load_si512(t.columns + 16 * v);
    unroll<A + B>([&](auto r) INT8D_INLINE { acc[r][v] = _mm512_add_epi32(column, _mm512_set1_epi32(t.rows[r])); });
  });
  const Strides k(t.k);
  const uint8_t *a = t.a, *b = t.a + kHalf * t.k;
  const int8_t* w = t.b;
  for (int step = 0; step < t.steps; ++step) {
    __m512i column[V];
    unroll<V>([&](auto v) INT8D_INLINE { column[v] = _mm512_load_si512(w + 64 * v); });
    unroll<A + B>([&](auto r) INT8D_INLINE {
      const __m512i x = avx512::broadcast4(at_row<decltype(r)::value, A>(a, b, k));
      unroll<V>([&](auto v) INT8D_INLINE { add_dot(acc[r][v], x, column[v]); });
    });
    a += 4;
    b += 4;
    w += 128;
  }
  const Epilogue& e = *t.epilogue;
  const avx512::Finish finish = e.finish;
  const __m512 multiplier = e.multiplier, hi = e.hi;
  constexpr int kTogether = 4 / V;  // rows whose four vectors become 64 bytes
  unroll<(A + B + kTogether - 1) / kTogether>([&](auto group) INT8D_INLINE {
    constexpr int first = group * kTogether;
    auto q = [&](auto i) INT8D_INLINE {
      constexpr int r = first + i / V, v = i % V;
      if constexpr (r < A + B)
        return Epilogue::round(acc[r][v], multiplier, hi);
      else
        return _mm512_setzero_si512();
    };
    using std::integral_constant;
    const __m512i bytes = avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()),
                                          q(integral_constant<int, 2>()), q(integral_constant<int, 3>()), finish);
    unroll<std::min(kTogether, A + B - first)>([&](auto i) INT8D_INLINE {
      if constexpr (V == 2)
        avx512::store32(t.out + (first + i) * t.n, _mm512_extracti64x4_epi64(bytes, i), t.mask);
      else
        avx512::store16(t.out + (first + i) * t.n, _mm512_extracti32x4_epi32(bytes, i), t.mask);
    });
  });
}

template <int V>
constexpr std::array kTiles = {run_tile<1, 0, V>, run_tile<2, 0, V>, run_tile<3, 0, V>, run_tile<4, 0, V>,
                               run_tile<5, 0, V>, run_tile<6, 0, V>, run_tile<7, 0, V>, run_tile<7, 1, V>,
                               run_tile<7, 2, V>, run_tile<7, 3, V>, run_tile<7, 4, V>, run_tile<7, 5, V>,
                               run_tile<7, 6, V>, run_tile<7, 7, V>};

}  // namespace

void matmul_u8u8_14x32_avx512vnni(const MatmulCall& call) {
  const MatmulShape& s = call.shape;
  const MatmulScratch scratch(s);
  int8_t* b = reinterpret_cast<int8_t*>(call.scratch);
  int32_t* columns = reinterpret_cast<int32_t*>(call.scratch + scratch.columns);
  int32_t* rows = reinterpret_cast<int32_t*>(call.scratch + scratch.rows);
  sum_rows(call, rows);
  const Epilogue epilogue(*call.params);
  const int count = call.row_end - call.row_begin, tiles = (count + kRows - 1) / kRows;
  Tile t{nullptr, s.k, s.n, nullptr, b, columns, nullptr, (s.k + 3) / 4, 0, &epilogue};
  for (int first = 0; first < s.n; first += 32) {
    const int width = std::min(32, s.n - first);
    pack_columns(call, first, b, columns);
    if (width > 16) pack_columns(call, first + 16, b + 64, columns + 16);
    t.mask = ~0u >> (32 - width);
    for (int tile = 0; tile < tiles; ++tile) {
      const int begin = static_cast<int>(int64_t{count} * tile / tiles),
                end = static_cast<int>(int64_t{count} * (tile + 1) / tiles);
      t.a = call.a + static_cast<size_t>(call.row_begin + begin) * s.k;
      t.out = call.out + static_cast<size_t>(call.row_begin + begin) * s.n + first;
      t.rows = rows + begin;
      (width > 16 ? kTiles<2> : kTiles<1>)[static_cast<size_t>(end - begin) - 1](t);
    }
  }
}

}  // namespace int8d
