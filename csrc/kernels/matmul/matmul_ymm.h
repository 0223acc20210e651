// Product of two activations in registers of 256 bits: AVX2 and AVX-VNNI. Tile: up to 6 rows x 16 columns.
//
// Registers: 12 accumulators, 2 vectors of b, 1 broadcast, and what `Dot` needs. A step takes 4 bytes of a row of a,
// or, for AVX2, 2 words: both operands are widened then and have their zero points taken off, so that no pair of
// products saturates and no sums are needed. The rows of a call are cut evenly. `Dot` adds in assembly: with
// intrinsics, g++ 12 stores sums at every step.
#pragma once
#include <algorithm>
#include <array>

#include "../common/epilogue_avx2.h"
#include "../common/unroll.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr int kRows = 6, kStepBytes = 64;

struct Tile {
  const uint8_t* a;    // bytes or words
  ptrdiff_t a_row, n;  // strides in bytes
  uint8_t* out;
  const uint8_t* b;
  const int32_t *columns, *rows;  // of bytes only
  int steps, width;
  const avx2::Finish* finish;
  float multiplier, hi;
};

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store256(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

template <typename Dot, int M>
void run_tile(const Tile& t) {
  __m256i acc[M][2];
  unroll<M>([&](auto r) INT8D_INLINE {
    unroll<2>([&](auto v) INT8D_INLINE {
      if constexpr (Dot::kWords)
        acc[r][v] = _mm256_setzero_si256();
      else
        acc[r][v] = _mm256_add_epi32(load256(t.columns + 8 * v), _mm256_set1_epi32(t.rows[r]));
    });
  });
  const uint8_t *a = t.a, *b = t.b;
  for (int step = 0; step < t.steps; ++step, a += 4, b += kStepBytes) {
    const __m256i b0 = load256(b), b1 = load256(b + 32);
    unroll<M>([&](auto r) INT8D_INLINE {
      const __m256i x = avx2::broadcast4(a + r * t.a_row);
      Dot::add(acc[r][0], x, b0);
      Dot::add(acc[r][1], x, b1);
    });
  }
  const __m256 multiplier = _mm256_set1_ps(t.multiplier), hi = _mm256_set1_ps(t.hi);
  // Below INT_MIN the conversion gives INT_MIN, which packing mends.
  auto round = [&](__m256i sum) INT8D_INLINE {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), multiplier), hi));
  };
  unroll<(M + 1) / 2>([&](auto pair) INT8D_INLINE {  // two rows are packed together
    constexpr int r = 2 * pair, next = r + 1 < M ? r + 1 : r;
    const __m256i bytes =
        avx2::clamp4(round(acc[r][0]), round(acc[r][1]), round(acc[next][0]), round(acc[next][1]), *t.finish);
    avx2::store_bytes(t.out + r * t.n, _mm256_castsi256_si128(bytes), t.width);
    if constexpr (next != r) avx2::store_bytes(t.out + next * t.n, _mm256_extracti128_si256(bytes, 1), t.width);
  });
}

// 8 rows of 8 dwords, transposed.
INT8D_INLINE inline void transpose(__m256i (&x)[8]) {
  __m256i y[8];
  unroll<4>([&](auto i) INT8D_INLINE {
    y[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  });
  unroll<2>([&](auto i) INT8D_INLINE {
    x[4 * i] = _mm256_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = _mm256_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = _mm256_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = _mm256_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
  });
  unroll<4>([&](auto i) INT8D_INLINE {
    y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
  });
  unroll<8>([&](auto i) INT8D_INLINE { x[i] = y[i]; });
}

// The bytes of an operand as a step multiplies them: bytes less 128, or words less their zero point.
template <typename Dot>
struct Loader {
  __m256i offset;
  uint8_t blank;  // the byte that becomes zero
  explicit Loader(int32_t zp)
      : offset(Dot::kWords ? _mm256_set1_epi16(static_cast<int16_t>(zp)) : _mm256_set1_epi8(static_cast<char>(0x80))),
        blank(static_cast<uint8_t>(Dot::kWords ? zp : 0x80)) {}
  // kBytes of them, `count` of which exist.
  static constexpr int kBytes = Dot::kWords ? 16 : 32;
  INT8D_INLINE inline __m256i operator()(const uint8_t* p, int count) const {
    alignas(32) uint8_t some[kBytes];
    if (count < kBytes) {
      std::fill_n(some, kBytes, blank);
      std::copy_n(p, std::max(count, 0), some);
      p = some;
    }
    return convert(p);
  }
  INT8D_INLINE inline __m256i convert(const uint8_t* p) const {
    if constexpr (Dot::kWords)
      return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), offset);
    else
      return _mm256_xor_si256(load256(p), offset);
  }
};

// 16 columns of b from `first` on as [step][16][4 bytes], zero beyond k; those beyond n hold anything.
template <typename Dot>
void pack_columns(const MatmulCall& call, int first, uint8_t* to) {
  const int k = call.shape.k, n = call.shape.n;
  const Loader<Dot> load(call.params->zp_b);
  if (call.shape.transpose_b) {
    for (int half = 0; half < 2; ++half)
      for (int at = 0; at < k; at += Loader<Dot>::kBytes) {
        __m256i x[8];
        unroll<8>([&](auto i) INT8D_INLINE {
          const int column = std::min(first + 8 * half + i, n - 1);
          x[i] = load(call.b + static_cast<size_t>(column) * k + at, k - at);
        });
        transpose(x);
        uint8_t* step = to + static_cast<size_t>(at / Dot::kStep) * kStepBytes + 32 * half;
        unroll<8>([&](auto i) INT8D_INLINE { store256(step + i * kStepBytes, x[i]); });
      }
    return;
  }
  const uint8_t* b = call.b + first;
  auto row = [&](int i) INT8D_INLINE {
    return i < k ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + static_cast<size_t>(i) * n))
                 : _mm_set1_epi8(static_cast<char>(load.blank));
  };
  for (int i = 0; i < k; i += Dot::kStep, to += kStepBytes) {
    __m256i low, high;  // columns 0 .. 3 and 8 .. 11, 4 .. 7 and 12 .. 15
    if constexpr (Dot::kWords) {
      const __m256i x0 = _mm256_sub_epi16(_mm256_cvtepu8_epi16(row(i)), load.offset),
                    x1 = _mm256_sub_epi16(_mm256_cvtepu8_epi16(row(i + 1)), load.offset);
      low = _mm256_unpacklo_epi16(x0, x1);
      high = _mm256_unpackhi_epi16(x0, x1);
    } else {
      const __m128i x0 = row(i), x1 = row(i + 1), x2 = row(i + 2), x3 = row(i + 3);
      const __m256i left = _mm256_set_m128i(_mm_unpackhi_epi8(x0, x1), _mm_unpacklo_epi8(x0, x1)),
                    right = _mm256_set_m128i(_mm_unpackhi_epi8(x2, x3), _mm_unpacklo_epi8(x2, x3));
      low = _mm256_xor_si256(_mm256_unpacklo_epi16(left, right), load.offset);
      high = _mm256_xor_si256(_mm256_unpackhi_epi16(left, right), load.offset);
    }
    store256(to, _mm256_permute2x128_si256(low, high, 0x20));
    store256(to + 32, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

// Bytes only: -zb' sum a of each row, k za zb' - za sum b' of each column.
template <typename Dot>
void sum_rows(const MatmulCall& call, int32_t* terms) {
  const int32_t zb = call.params->zp_b - 128;
  const uint8_t* a = call.a + static_cast<size_t>(call.row_begin) * call.shape.k;
  for (int row = call.row_begin; row < call.row_end; ++row, a += call.shape.k) {
    int32_t sum = 0;
    if (zb != 0)
      for (int i = 0; i < call.shape.k; ++i) sum += a[i];
    *terms++ = -zb * sum;
  }
}

template <typename Dot>
void sum_columns(const MatmulCall& call, const uint8_t* packed, int32_t* terms) {
  const __m256i ones = _mm256_set1_epi8(1);
  __m256i low = _mm256_setzero_si256(), high = low;
  for (int step = 0; Dot::kStep * step < call.shape.k; ++step, packed += kStepBytes) {
    Dot::add(low, ones, load256(packed));
    Dot::add(high, ones, load256(packed + 32));
  }
  const int32_t za = call.params->zp_a;
  const __m256i constant = _mm256_set1_epi32(call.shape.k * za * (call.params->zp_b - 128)),
                factor = _mm256_set1_epi32(za);
  store256(terms, _mm256_sub_epi32(constant, _mm256_mullo_epi32(low, factor)));
  store256(terms + 8, _mm256_sub_epi32(constant, _mm256_mullo_epi32(high, factor)));
}

template <typename Dot>
void run_matmul(const MatmulCall& call) {
  constexpr std::array kTiles = {run_tile<Dot, 1>, run_tile<Dot, 2>, run_tile<Dot, 3>,
                                 run_tile<Dot, 4>, run_tile<Dot, 5>, run_tile<Dot, 6>};
  const MatmulShape& s = call.shape;
  const MatmulParams& p = *call.params;
  const avx2::Finish finish({p.lo, p.hi, p.zp});
  const uint8_t* a = call.a + static_cast<size_t>(call.row_begin) * s.k;
  ptrdiff_t a_row = s.k;
  int32_t *columns = nullptr, *rows = nullptr;
  const int count = call.row_end - call.row_begin, tiles = (count + kRows - 1) / kRows;
  if constexpr (Dot::kWords) {
    const MatmulWordsScratch scratch(s);
    const Loader<Dot> load(p.zp_a);
    uint8_t* to = call.scratch + scratch.a;
    for (int row = 0; row < count; ++row, to += scratch.a_row)
      for (int at = 0; at < s.k; at += 16)
        store256(to + 2 * at, load(a + static_cast<size_t>(row) * s.k + at, s.k - at));
    a = call.scratch + scratch.a;
    a_row = static_cast<ptrdiff_t>(scratch.a_row);
  } else {
    const MatmulScratch scratch(s);
    columns = reinterpret_cast<int32_t*>(call.scratch + scratch.columns);
    rows = reinterpret_cast<int32_t*>(call.scratch + scratch.rows);
    sum_rows<Dot>(call, rows);
  }
  const int steps = (s.k + Dot::kStep - 1) / Dot::kStep;
  Tile t{nullptr, a_row, s.n, nullptr, call.scratch, columns,
         nullptr, steps, 0,   &finish, p.multiplier, static_cast<float>(p.hi - p.zp)};
  for (int first = 0; first < s.n; first += 16) {
    pack_columns<Dot>(call, first, call.scratch);
    if constexpr (!Dot::kWords) sum_columns<Dot>(call, call.scratch, columns);
    t.width = std::min(16, s.n - first);
    for (int tile = 0; tile < tiles; ++tile) {
      const int begin = static_cast<int>(int64_t{count} * tile / tiles),
                end = static_cast<int>(int64_t{count} * (tile + 1) / tiles);
      t.a = a + begin * a_row;
      t.out = call.out + static_cast<size_t>(call.row_begin + begin) * s.n + first;
      t.rows = rows + (Dot::kWords ? 0 : begin);
      kTiles[static_cast<size_t>(end - begin) - 1](t);
    }
  }
}

}  // namespace
}  // namespace int8d
