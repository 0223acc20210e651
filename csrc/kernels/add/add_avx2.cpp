// Quantized sum, AVX2: 16 elements an iteration, the last ones by the scalar form.
#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {

void add_u8_16_avx2(const uint8_t* a, const uint8_t* b, uint8_t* out, size_t count, const AddParams& p) {
  const avx2::Add add(p);
  const __m256i zp1 = _mm256_set1_epi32(p.zp1);
  auto eight = [&](size_t i) {
    const __m256i v1 = _mm256_sub_epi32(avx2::load_bytes(a + i), zp1);
    return _mm256_add_epi32(avx2::add(v1, avx2::load_bytes(b + i), add), add.clamp.zp);
  };
  size_t i = 0;
  for (; i + 16 <= count; i += 16) avx2::store_bytes(out + i, avx2::pack_bytes(eight(i), eight(i + 8)), 16);
  add_u8_ref(a + i, b + i, out + i, count - i, p);
}

}  // namespace int8d
