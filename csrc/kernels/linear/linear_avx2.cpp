// Matrix product (linear_ymm.h), AVX2, exact: vpmaddubsw + vpmaddwd + vpaddd, saturating pairs split as in
// conv_avx2.cpp.
#include "linear_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return avx2::dot4(acc, x, w); }
};

}  // namespace

void linear_u8s8_2x32_avx2(const LinearCall& call) { run_linear<Dot>(call); }

}  // namespace int8d
