// Table look-up, AVX2: 32 bytes by 16 vpshufb (avx2::Lookup).
#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {

void lut_u8_32_avx2(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table) {
  const avx2::Lookup lookup(table);
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        lookup(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
  lut_u8_ref(in + i, out + i, count - i, table);
}

}  // namespace int8d
