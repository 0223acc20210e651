// The register-only loop of vpdpbusd, AVX-VNNI.
#include <immintrin.h>

#include "../common/unroll.h"
#include "loops.h"

namespace int8d {

void peak_avxvnni(int64_t rounds) {
  __m256i acc[kPeakChains];
  unroll<kPeakChains>([&](auto i) INT8D_INLINE {
    acc[i] = _mm256_setzero_si256();
    asm("" : "+x"(acc[i]));  // as far as the compiler knows, no two are equal
  });
  __m256i x = _mm256_set1_epi32(0x01010101), w = x;

  for (int64_t round = 0; round < rounds; ++round) {
    asm("" : "+x"(x), "+x"(w));  // nothing may be computed once and for all
    unroll<kPeakChains>([&](auto i) INT8D_INLINE { acc[i] = _mm256_dpbusd_avx_epi32(acc[i], x, w); });
  }
  unroll<kPeakChains>([&](auto i) INT8D_INLINE { asm volatile("" : : "x"(acc[i])); });
}

}  // namespace int8d
