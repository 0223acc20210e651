// Layer normalization, AVX512-VNNI: 64 elements an iteration. The sums take 7 instructions for them, the rest 4 times
// 10.
//
// n q and S are integers below 2^24, and so exact in fp32, as is their difference: no 32-bit product is needed.
#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "variants.h"

namespace int8d {
namespace {

struct Sums {
  uint64_t sum, squares;
};

inline __mmask64 first(size_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

Sums sums(const uint8_t* in, size_t n) {
  const __m512i zero = _mm512_setzero_si512(), low = _mm512_set1_epi16(0xff);
  __m512i sum = zero, even = zero, odd = zero;
  auto add = [&](__m512i q) INT8D_INLINE {
    const __m512i e = _mm512_and_si512(q, low), o = _mm512_srli_epi16(q, 8);
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(q, zero));
    even = _mm512_dpwssd_epi32(even, e, e);
    odd = _mm512_dpwssd_epi32(odd, o, o);
  };
  size_t i = 0;
  for (; i + 64 <= n; i += 64) add(_mm512_loadu_si512(in + i));
  if (i < n) add(_mm512_maskz_loadu_epi8(first(n - i), in + i));
  // All squares together stay below 2^32, but not below 2^31: they are added up as unsigned ones, in 64 bits.
  const __m512i squares = _mm512_add_epi32(even, odd), half = _mm512_set1_epi64(0xffffffff);
  const __m512i wide = _mm512_add_epi64(_mm512_and_si512(squares, half), _mm512_srli_epi64(squares, 32));
  return {static_cast<uint64_t>(_mm512_reduce_add_epi64(sum)), static_cast<uint64_t>(_mm512_reduce_add_epi64(wide))};
}

}  // namespace

void layer_norm_u8_64_avx512vnni(const LayerNormCall& call) {
  const LayerNormParams& p = *call.params;
  const avx512::Finish finish({p.lo, p.hi, p.zp});
  const __m512 n = _mm512_set1_ps(static_cast<float>(call.n)), hi = _mm512_set1_ps(static_cast<float>(p.hi - p.zp));
  const uint8_t* in = call.in;
  uint8_t* out = call.out;
  for (size_t row = 0; row < call.rows; ++row, in += call.n, out += call.n) {
    const Sums all = sums(in, call.n);
    const __m512 r = _mm512_set1_ps(layer_norm_factor(call.n, all.sum, all.squares, p.epsilon)),
                 s = _mm512_set1_ps(static_cast<float>(all.sum));
    auto sixteen = [&](__m128i q, __m512 gamma, __m512 beta) INT8D_INLINE {
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q)), n);
      const __m512 t = _mm512_mul_ps(_mm512_sub_ps(product, s), r);
      // Below INT_MIN the conversion gives INT_MIN, which packing mends.
      return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_add_ps(_mm512_mul_ps(t, gamma), beta), hi));
    };
    size_t i = 0;
    for (; i + 64 <= call.n; i += 64) {
      __m512i v[4];
      unroll<4>([&](auto k) INT8D_INLINE {
        v[k] = sixteen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + 16 * k)),
                       _mm512_loadu_ps(p.gamma + i + 16 * k), _mm512_loadu_ps(p.beta + i + 16 * k));
      });
      _mm512_storeu_si512(out + i, avx512::finish4(v[0], v[1], v[2], v[3], finish));
    }
    if (i == call.n) continue;
    const __mmask64 mask = first(call.n - i);
    __m512i v[4];
    unroll<4>([&](auto k) INT8D_INLINE {
      const __mmask16 part = static_cast<__mmask16>(mask >> (16 * k));
      v[k] = sixteen(_mm_maskz_loadu_epi8(part, in + i + 16 * k), _mm512_maskz_loadu_ps(part, p.gamma + i + 16 * k),
                     _mm512_maskz_loadu_ps(part, p.beta + i + 16 * k));
    });
    _mm512_mask_storeu_epi8(out + i, mask, avx512::finish4(v[0], v[1], v[2], v[3], finish));
  }
}

}  // namespace int8d
