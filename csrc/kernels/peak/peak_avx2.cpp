// The register-only loop of vpmaddubsw, vpmaddwd and vpaddd.
#include <immintrin.h>

#include "../common/unroll.h"
#include "loops.h"

namespace int8d {

void peak_avx2(int64_t rounds) {
  __m256i acc[kPeakChains];
  unroll<kPeakChains>([&](auto i) INT8D_INLINE {
    acc[i] = _mm256_setzero_si256();
    asm("" : "+x"(acc[i]));  // as far as the compiler knows, no two are equal
  });
  __m256i x = _mm256_set1_epi32(0x01010101), w = x;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
    unroll<kPeakChains>([&](auto i) INT8D_INLINE {
      asm("" : "+x"(x), "+x"(w));  // no product may be computed once and for all, or for all sums
      acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
    });
  }
  unroll<kPeakChains>([&](auto i) INT8D_INLINE { asm volatile("" : : "x"(acc[i])); });
}

}  // namespace int8d
