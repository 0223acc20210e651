// The register-only loop of vpdpbusd.
#include <immintrin.h>

#include "../common/unroll.h"
#include "loops.h"

namespace int8d {

void peak_avx512vnni(int64_t rounds) {
  __m512i acc[kPeakChains];
  unroll<kPeakChains>([&](auto i) INT8D_INLINE {
    acc[i] = _mm512_setzero_si512();
    asm("" : "+v"(acc[i]));  // as far as the compiler knows, no two are equal
  });
  __m512i x = _mm512_set1_epi32(0x01010101), w = x;

  for (int64_t round = 0; round < rounds; ++round) {
    asm("" : "+v"(x), "+v"(w));  // nothing may be computed once and for all
    unroll<kPeakChains>([&](auto i) INT8D_INLINE { acc[i] = _mm512_dpbusd_epi32(acc[i], x, w); });
  }
  unroll<kPeakChains>([&](auto i) INT8D_INLINE { asm volatile("" : : "v"(acc[i])); });
}

}  // namespace int8d
