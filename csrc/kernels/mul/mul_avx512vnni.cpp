// Quantized product, AVX512: 64 channels an iteration, the last one masked; about 40 instructions.
//
// The factors fit 9 bits with their sign, their product 17: vpmullw and vpmulhw give its halves, interleaved within
// 128-bit lanes. Packing, within lanes too, restores the order.
#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "variants.h"

namespace int8d {

void mul_u8_64_avx512vnni(const MulCall& call) {
  const MulParams& p = *call.params;
  const avx512::Clamp clamp(p.lo, p.hi, p.zp);
  const __m512i zp1 = _mm512_set1_epi16(static_cast<int16_t>(p.zp1));
  const __m512i zp2 = _mm512_set1_epi16(static_cast<int16_t>(p.zp2)), zero = _mm512_setzero_si512();
  const __m512 m = _mm512_set1_ps(p.multiplier);
  auto finish = [&](__m512i product) { return _mm512_add_epi32(avx512::requantize(product, m, clamp), clamp.zp); };
  for (size_t c = 0; c < call.channels; c += 64) {
    const size_t left = std::min<size_t>(64, call.channels - c);
    const __mmask64 mask = left == 64 ? ~0ull : (1ull << left) - 1;
    const uint8_t *a = call.a + c, *b = call.b + c;
    uint8_t* out = call.out + c;
    for (size_t x = 0; x < call.pixels; ++x, a += call.channels, b += call.b_stride, out += call.channels) {
      const __m512i qa = _mm512_maskz_loadu_epi8(mask, a), qb = _mm512_maskz_loadu_epi8(mask, b);
      auto words = [&](__m512i va, __m512i vb) {
        va = _mm512_sub_epi16(va, zp1), vb = _mm512_sub_epi16(vb, zp2);
        const __m512i low = _mm512_mullo_epi16(va, vb), high = _mm512_mulhi_epi16(va, vb);
        return _mm512_packus_epi32(finish(_mm512_unpacklo_epi16(low, high)), finish(_mm512_unpackhi_epi16(low, high)));
      };
      const __m512i low = words(_mm512_unpacklo_epi8(qa, zero), _mm512_unpacklo_epi8(qb, zero));
      const __m512i high = words(_mm512_unpackhi_epi8(qa, zero), _mm512_unpackhi_epi8(qb, zero));
      _mm512_mask_storeu_epi8(out, mask, _mm512_packus_epi16(low, high));
    }
  }
}

}  // namespace int8d
