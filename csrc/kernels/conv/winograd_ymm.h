// Exact Winograd convolution (winograd_tiles.h) in registers of 256 bits: AVX2 and AVX-VNNI.
//
// Inputs are transformed 16 channels an instruction, outputs 8. Products: 6 tiles x 16 channels in registers, 12 sums,
// 2 weights, 1 broadcast, and 1 product where `dot`, acc + x * w over pairs of words, takes two instructions.
#pragma once
#include <algorithm>
#include <array>

#include "../common/epilogue_avx2.h"
#include "halves.h"
#include "winograd_tiles.h"

namespace int8d {
namespace {

// M[row][16] of `Rows` tiles: `steps` pairs of channels; to `add`, on top of what is there. Weights that lie `ahead`
// further on are fetched to L2.
template <typename Dot, int Rows>
void multiply(const uint8_t* v, ptrdiff_t stride, const int16_t* u, int steps, size_t ahead, uint8_t* m, bool add) {
  auto at = [&](int i, int j) INT8D_INLINE { return reinterpret_cast<__m256i*>(m + i * 64 + j * 32); };
  __m256i acc[Rows][2];
  if (add)
    unroll<Rows>([&](auto i) INT8D_INLINE {
      acc[i][0] = _mm256_load_si256(at(i, 0));
      acc[i][1] = _mm256_load_si256(at(i, 1));
    });
  else
    unroll<Rows>([&](auto i) INT8D_INLINE { acc[i][0] = acc[i][1] = _mm256_setzero_si256(); });
  const Strides k(stride);
#pragma GCC unroll 4
  for (int step = 0; step < steps; ++step) {
    const __m256i u0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(u));
    const __m256i u1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(u + 16));
    unroll<Rows>([&](auto i) INT8D_INLINE {
      const __m256i x = avx2::broadcast4(at_row<decltype(i)::value>(v, k));
      acc[i][0] = Dot::dot(acc[i][0], x, u0);
      acc[i][1] = Dot::dot(acc[i][1], x, u1);
    });
    _mm_prefetch(reinterpret_cast<const char*>(u + ahead), _MM_HINT_T1);
    v += 4;
    u += 32;
  }
  unroll<Rows>([&](auto i) INT8D_INLINE {
    _mm256_store_si256(at(i, 0), acc[i][0]);
    _mm256_store_si256(at(i, 1), acc[i][1]);
  });
}

template <typename Dot>
struct Lanes {
  using Int = __m256i;
  using Finish = avx2::Finish;
  using Sum = avx2::Sum;
  static constexpr int kDwords = 8, kRows = 6;

  static Int load(const void* p) { return _mm256_load_si256(static_cast<const Int*>(p)); }
  static __m256 load_floats(const float* p) { return _mm256_load_ps(p); }
  static void store(void* p, Int v) { _mm256_store_si256(static_cast<Int*>(p), v); }
  static Int load_words(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Int load_signed_words(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }

  static Int all16(int v) { return _mm256_set1_epi16(static_cast<int16_t>(v)); }
  static Int all32(int v) { return _mm256_set1_epi32(v); }
  static Int add16(Int a, Int b) { return _mm256_add_epi16(a, b); }
  static Int sub16(Int a, Int b) { return _mm256_sub_epi16(a, b); }
  static Int mul16(Int a, Int b) { return _mm256_mullo_epi16(a, b); }
  static Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int sub32(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int mul32(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  template <int Bits>
  static Int shift16(Int a) {
    return _mm256_slli_epi16(a, Bits);
  }
  template <int Bits>
  static Int shift32(Int a) {
    return _mm256_slli_epi32(a, Bits);
  }

  static void multiply(int rows, const uint8_t* v, ptrdiff_t stride, const int16_t* u, int pairs, size_t ahead,
                       uint8_t* m, bool add) {
    constexpr auto kMultiply = [] {
      using F = void (*)(const uint8_t*, ptrdiff_t, const int16_t*, int, size_t, uint8_t*, bool);
      using int8d::multiply;
      return std::array<F, 7>{nullptr,          multiply<Dot, 1>, multiply<Dot, 2>, multiply<Dot, 3>,
                              multiply<Dot, 4>, multiply<Dot, 5>, multiply<Dot, 6>};
    }();
    kMultiply[static_cast<size_t>(rows)](v, stride, u, pairs, ahead, m, add);
  }

  static int mask(int channels) { return channels; }
  static __m128i load_bytes(const uint8_t* p, int channels) {
    if (channels >= 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return avx2::load8(p, channels);
  }
  static Int round_narrow(Int acc, __m256 multiplier) { return avx2::round_narrow(acc, multiplier); }
  static Int sum_narrow(Int acc, __m256 multiplier, __m128i residual, const Sum& sum) {
    return avx2::sum_narrow(acc, multiplier, residual, sum);
  }
  static Int finish4(Int a, Int b, Int c, Int d, const Finish& f) { return avx2::finish4(a, b, c, d, f); }
  // Pixel I's 8 bytes.
  template <int I>
  static void store_bytes(uint8_t* out, Int bytes, int channels) {
    const int64_t v = _mm256_extract_epi64(bytes, I);
    if (channels >= 8)
      __builtin_memcpy(out, &v, 8);
    else
      avx2::store8(out, v, channels);
  }
};

}  // namespace
}  // namespace int8d
