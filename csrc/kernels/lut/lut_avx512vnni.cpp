// Table look-up, AVX512 with VBMI: 64 bytes by two vpermi2b and a blend, the table in 4 registers.
#include "../common/epilogue_avx512.h"
#include "variants.h"

namespace int8d {

void lut_u8_64_avx512vnni(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table) {
  size_t i = 0;
  for (; i + 64 <= count; i += 64) _mm512_storeu_si512(out + i, avx512::lookup(_mm512_loadu_si512(in + i), table));
  if (i == count) return;
  const __mmask64 mask = (1ull << (count - i)) - 1;
  _mm512_mask_storeu_epi8(out + i, mask, avx512::lookup(_mm512_maskz_loadu_epi8(mask, in + i), table));
}

}  // namespace int8d
