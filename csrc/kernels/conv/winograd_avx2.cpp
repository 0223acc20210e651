// Exact Winograd convolution (winograd_ymm.h), AVX2. A product is vpmaddwd + vpaddd: two of them are below 2^31, the
// sums wrap. Three of those a cycle do 24 products, Winograd needs a quarter: at best 3 times as fast as the direct
// form.
#include "winograd_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)); }
};

}  // namespace

void conv_u8s8_winograd_avx2(const ConvCall& call) { winograd::run<Lanes<Dot>>(call); }

}  // namespace int8d
