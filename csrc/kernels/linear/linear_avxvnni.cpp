// Matrix product (linear_ymm.h), AVX-VNNI: one vpdpbusd a step and vector.
#include "linear_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
};

}  // namespace

void linear_u8s8_2x32_avxvnni(const LinearCall& call) { run_linear<Dot>(call); }

}  // namespace int8d
