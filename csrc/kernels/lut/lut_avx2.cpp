// Table look-up, AVX2: 32 bytes by 16 vpshufb, one for each 16 entries.
//
// vpshufb gives 0 where its index's top bit is set. q - 16 k, its top bits saturated, is a valid index for the k-th
// 16 entries only, so the 16 results are or-ed: 16 x (vpsubb, vpaddusb, vpshufb, vpor).
#include <immintrin.h>

#include "variants.h"

namespace int8d {

void lut_u8_32_avx2(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table) {
  const __m256i high = _mm256_set1_epi8(0x70);
  size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)), found = _mm256_setzero_si256();
    for (int k = 0; k < 16; ++k) {
      const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
      const __m256i index = _mm256_adds_epu8(q, high);  // 0..15 keeps its top bit clear: 0x70..0x7f
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index));
      q = _mm256_sub_epi8(q, _mm256_set1_epi8(16));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), found);
  }
  lut_u8_ref(in + i, out + i, count - i, table);
}

}  // namespace int8d
