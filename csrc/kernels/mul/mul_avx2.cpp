// Quantized product, AVX2: 16 channels an iteration, the last ones by the scalar form.
#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {

void mul_u8_16_avx2(const MulCall& call) {
  const MulParams& p = *call.params;
  const avx2::Clamp clamp(p.lo, p.hi, p.zp);
  const __m256i zp1 = _mm256_set1_epi32(p.zp1), zp2 = _mm256_set1_epi32(p.zp2);
  const __m256 m = _mm256_set1_ps(p.multiplier);
  auto eight = [&](const uint8_t* a, const uint8_t* b) {
    const __m256i va = _mm256_sub_epi32(avx2::load_bytes(a), zp1), vb = _mm256_sub_epi32(avx2::load_bytes(b), zp2);
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_mullo_epi32(va, vb)), m);
    return _mm256_add_epi32(avx2::round_and_clamp(scaled, clamp), clamp.zp);
  };
  for (size_t x = 0; x < call.pixels; ++x) {
    const uint8_t *a = call.a + x * call.channels, *b = call.b + x * call.b_stride;
    uint8_t* out = call.out + x * call.channels;
    size_t c = 0;
    for (; c + 16 <= call.channels; c += 16)
      avx2::store_bytes(out + c, avx2::pack_bytes(eight(a + c, b + c), eight(a + c + 8, b + c + 8)), 16);
    mul_u8_ref({a + c, b + c, out + c, 1, call.channels - c, 0, call.params});
  }
}

}  // namespace int8d
