// Exact Winograd convolution (winograd_ymm.h), AVX-VNNI: a product is vpdpwssd, which does half of vpdpbusd's.
#include "winograd_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return _mm256_dpwssd_avx_epi32(acc, x, w); }
};

}  // namespace

void conv_u8s8_winograd_avxvnni(const ConvCall& call) { winograd::run<Lanes<Dot>>(call); }

}  // namespace int8d
