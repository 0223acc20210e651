// Product of two activations (matmul_ymm.h), AVX2: vpmaddwd and vpaddd on words.
#include "matmul_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static constexpr bool kWords = true;
  static constexpr int kStep = 2;
  static __m256i dot(__m256i acc, __m256i x, __m256i b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, b)); }
};

}  // namespace

void matmul_u8u8_words_6x16_avx2(const MatmulCall& call) { run_matmul<Dot>(call); }

}  // namespace int8d
