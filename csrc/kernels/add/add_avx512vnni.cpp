// Quantized sum, AVX512: 16 elements an iteration, about 12 instructions, the last one masked.
#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "variants.h"

namespace int8d {

void add_u8_16_avx512vnni(const uint8_t* a, const uint8_t* b, uint8_t* out, size_t count, const AddParams& p) {
  const avx512::Add add(p);
  const __m512i zp1 = _mm512_set1_epi32(p.zp1);
  for (size_t i = 0; i < count; i += 16) {
    const size_t left = count - i;
    const __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
    const __m512i v1 = _mm512_sub_epi32(avx512::load_bytes(a + i, mask), zp1);
    avx512::store_bytes(out + i, avx512::add(v1, avx512::load_bytes(b + i, mask), add), add.clamp.zp, mask);
  }
}

}  // namespace int8d
