// What the products of AVX512 and AMX share: b packed as [step][columns][4], the sums, the epilogue. Included by the
// *_avx512vnni.cpp and *_amx.cpp files only.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "matmul.h"

namespace int8d {
namespace {

struct Epilogue {
  avx512::Finish finish;
  __m512 multiplier, hi;
  explicit Epilogue(const MatmulParams& p)
      : finish({p.lo, p.hi, p.zp}),
        multiplier(_mm512_set1_ps(p.multiplier)),
        hi(_mm512_set1_ps(static_cast<float>(p.hi - p.zp))) {}
  // Below INT_MIN the conversion gives INT_MIN, which packing mends.
  INT8D_INLINE static inline __m512i round(__m512i sum, __m512 multiplier, __m512 hi) {
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier), hi));
  }
};

// -zb' sum a, for each row of the call.
inline void sum_rows(const MatmulCall& call, int32_t* terms) {
  const size_t k = static_cast<size_t>(call.shape.k);
  const int32_t zb = call.params->zp_b - 128;
  const __m512i ones = _mm512_set1_epi8(1);
  const uint8_t* a = call.a + static_cast<size_t>(call.row_begin) * k;
  for (int row = call.row_begin; row < call.row_end; ++row, a += k) {
    __m512i sum = _mm512_setzero_si512();
    if (zb != 0) {
      size_t i = 0;
      for (; i + 64 <= k; i += 64) sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(a + i), ones);
      if (i < k) sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(~0ull >> (64 - (k - i)), a + i), ones);
    }
    *terms++ = -zb * _mm512_reduce_add_epi32(sum);
  }
}

// 16 rows of 16 dwords, transposed.
INT8D_INLINE inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  unroll<8>([&](auto i) INT8D_INLINE {  // pairs of rows, then fours, within 128-bit lanes
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  });
  unroll<4>([&](auto i) INT8D_INLINE {
    x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
  });
  unroll<4>([&](auto i) INT8D_INLINE {  // x[4 r + i]: rows 4 r .. 4 r + 3 of columns i, i + 4, i + 8, i + 12
    const __m512i even_low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88),
                  odd_low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd),
                  even_high = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88),
                  odd_high = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    y[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    y[i + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  });
  unroll<16>([&](auto i) INT8D_INLINE { x[i] = y[i]; });
}

// 16 columns of b from `first` on, as b' [step][16][4], to `to`, 128 bytes from step to step; a multiple of 16 steps,
// zero beyond k. terms: k za zb' - za sum b', for each column. Columns beyond n hold anything.
inline void pack_columns(const MatmulCall& call, int first, int8_t* to, int32_t* terms) {
  const int k = call.shape.k, n = call.shape.n;
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  auto store = [&](int step, __m512i packed) INT8D_INLINE {
    _mm512_store_si512(to + ptrdiff_t{step} * 128, packed);
    sum = _mm512_dpbusd_epi32(sum, ones, packed);
  };
  if (call.shape.transpose_b) {
    const uint8_t* rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = call.b + static_cast<size_t>(std::min(first + i, n - 1)) * k;
    for (int at = 0; at < k; at += 64) {
      const __mmask64 mask = k - at >= 64 ? ~0ull : (1ull << (k - at)) - 1;
      const __m512i flip = _mm512_maskz_set1_epi8(mask, static_cast<char>(0x80));
      __m512i x[16];
      unroll<16>([&](auto i)
                     INT8D_INLINE { x[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[i] + at), flip); });
      transpose(x);
      unroll<16>([&](auto i) INT8D_INLINE { store(at / 4 + i, x[i]); });
    }
  } else {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    // Byte i of column c lies at 16 i + c and goes to 4 c + i.
    const __m512i order = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51)),
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi8(4), 1)),
                           _mm256_inserti128_si256(_mm256_set1_epi8(8), _mm_set1_epi8(12), 1), 1));
    const __m128i blank = _mm_set1_epi8(static_cast<char>(0x80));
    const uint8_t* b = call.b + first;
    auto load = [&](int row) INT8D_INLINE {
      return row < k ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + static_cast<size_t>(row) * n)) : blank;
    };
    for (int step = 0; 4 * step < k; ++step) {
      __m512i x = _mm512_castsi128_si512(load(4 * step));
      x = _mm512_inserti32x4(x, load(4 * step + 1), 1);
      x = _mm512_inserti32x4(x, load(4 * step + 2), 2);
      x = _mm512_inserti32x4(x, load(4 * step + 3), 3);
      store(step, _mm512_xor_si512(_mm512_permutexvar_epi8(order, x), flip));
    }
    for (int step = (k + 3) / 4; step % 16 != 0; ++step) store(step, _mm512_setzero_si512());
  }
  const int32_t za = call.params->zp_a, constant = k * za * (call.params->zp_b - 128);
  _mm512_store_si512(terms,
                     _mm512_sub_epi32(_mm512_set1_epi32(constant), _mm512_mullo_epi32(sum, _mm512_set1_epi32(za))));
}

}  // namespace
}  // namespace int8d
