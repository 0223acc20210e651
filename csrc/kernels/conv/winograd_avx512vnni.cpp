// Exact Winograd convolution (winograd_tiles.h), AVX512-VNNI.
//
// Inputs are transformed 32 channels an instruction, outputs 16. The products are of vpdpwssd, with 14 tiles x 32
// channels in registers as in conv_avx512vnni.cpp: 28 sums, 2 weights, 1-2 broadcasts. vpdpwssd does half the products
// of vpdpbusd, Winograd needs a quarter: at best twice as fast as the direct form.
#include <algorithm>
#include <array>

#include "../common/epilogue_avx512.h"
#include "halves.h"
#include "winograd_tiles.h"

namespace int8d {
namespace {

using V512 = __m512i;

// M[row][32] of `Rows` tiles: `steps` pairs of channels; to `add`, on top of what is there. Weights that lie `ahead`
// further on are fetched to L2.
template <int Rows>
void multiply(const uint8_t* v, ptrdiff_t stride, const int16_t* u, int steps, size_t ahead, uint8_t* m, bool add) {
  constexpr int A = Rows < kHalf ? Rows : kHalf;
  V512 acc[Rows][2];
  if (add)
    unroll<Rows>([&](auto i) INT8D_INLINE {
      acc[i][0] = _mm512_load_si512(m + i * 128);
      acc[i][1] = _mm512_load_si512(m + i * 128 + 64);
    });
  else
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

using Multiply = void (*)(const uint8_t*, ptrdiff_t, const int16_t*, int, size_t, uint8_t*, bool);
constexpr std::array<Multiply, 15> kMultiply = {nullptr,      multiply<1>,  multiply<2>,  multiply<3>,  multiply<4>,
                                                multiply<5>,  multiply<6>,  multiply<7>,  multiply<8>,  multiply<9>,
                                                multiply<10>, multiply<11>, multiply<12>, multiply<13>, multiply<14>};

struct Lanes {
  using Int = V512;
  using Finish = avx512::Finish;
  using Sum = avx512::Sum;
  static constexpr int kDwords = 16, kRows = 14;

  static Int load(const void* p) { return _mm512_load_si512(p); }
  static __m512 load_floats(const float* p) { return _mm512_load_ps(p); }
  static void store(void* p, Int v) { _mm512_store_si512(p, v); }
  static Int load_words(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Int load_signed_words(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }

  static Int all16(int v) { return _mm512_set1_epi16(static_cast<int16_t>(v)); }
  static Int all32(int v) { return _mm512_set1_epi32(v); }
  static Int add16(Int a, Int b) { return _mm512_add_epi16(a, b); }
  static Int sub16(Int a, Int b) { return _mm512_sub_epi16(a, b); }
  static Int mul16(Int a, Int b) { return _mm512_mullo_epi16(a, b); }
  static Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int sub32(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int mul32(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  template <int Bits>
  static Int shift16(Int a) {
    return _mm512_slli_epi16(a, Bits);
  }
  template <int Bits>
  static Int shift32(Int a) {
    return _mm512_slli_epi32(a, Bits);
  }

  static void multiply(int rows, const uint8_t* v, ptrdiff_t stride, const int16_t* u, int pairs, size_t ahead,
                       uint8_t* m, bool add) {
    kMultiply[static_cast<size_t>(rows)](v, stride, u, pairs, ahead, m, add);
  }

  static __mmask16 mask(int channels) { return static_cast<__mmask16>(channels >= 16 ? 0xffff : (1u << channels) - 1); }
  static __m128i load_bytes(const uint8_t* p, __mmask16 mask) {
    if (mask == 0xffff) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm_maskz_loadu_epi8(mask, p);
  }
  static Int round_narrow(Int acc, __m512 multiplier) { return avx512::round_narrow(acc, multiplier); }
  static Int sum_narrow(Int acc, __m512 multiplier, __m128i residual, const Sum& sum) {
    return avx512::sum_narrow(acc, multiplier, residual, sum);
  }
  static Int finish4(Int a, Int b, Int c, Int d, const Finish& f) { return avx512::finish4(a, b, c, d, f); }
  // Pixel I's 16 bytes.
  template <int I>
  static void store_bytes(uint8_t* out, Int bytes, __mmask16 mask) {
    const __m128i v = _mm512_extracti32x4_epi32(bytes, I);
    if (mask == 0xffff)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), v);
    else
      _mm_mask_storeu_epi8(out, mask, v);
  }
};

}  // namespace

void conv_u8s8_winograd_avx512vnni(const ConvCall& call) { winograd::run<Lanes>(call); }

}  // namespace int8d
