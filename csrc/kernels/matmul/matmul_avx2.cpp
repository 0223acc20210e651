// Product of two activations (matmul_ymm.h), AVX2: vpmaddwd and vpaddd on words.
#include "matmul_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static constexpr bool kWords = true;
  static constexpr int kStep = 2;
  static void add(__m256i& sum, __m256i x, __m256i b) {
    const __m256i products = _mm256_madd_epi16(x, b);
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  }
};

}  // namespace

void matmul_u8u8_words_6x16_avx2(const MatmulCall& call) { run_matmul<Dot>(call); }

}  // namespace int8d
