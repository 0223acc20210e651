// Direct convolution (conv_ymm.h), AVX2, exact, in two forms.
//
// Bytes, 4 pixels: 8 sums, 2 weights, 1 broadcast, 2 products, 1 of ones. A step of 4 inputs takes, for each of the 8
// sums, vpmaddubsw + vpmaddwd + vpaddd: 8 cycles, bound by all three ports. vpmaddubsw saturates at 16 bits: packing
// has split every pair of weights that could (pack.h), and the steps in `extras` add what was split off.
//
// Words, 6 pixels, from a widened copy of the input: 12 sums, 2 weights, 1 broadcast, 1 product; vpmaddwd + vpaddd,
// which can't saturate. Per input that is a third more work, so it is for weights that would need many extras, and for
// windows that fill pairs better than quadruples.
#include "conv_ymm.h"

namespace int8d {
namespace {

struct Bytes {
  static constexpr int kPixels = 4;
  static constexpr bool kWords = false, kSplit = true;
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return avx2::dot4(acc, x, w); }
};

struct Words {
  static constexpr int kPixels = 6;
  static constexpr bool kWords = true, kSplit = false;
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)); }
};

}  // namespace

void conv_u8s8_4x16_avx2(const ConvCall& call) { run_direct<Bytes>(call); }
void conv_u8s8_words_6x16_avx2(const ConvCall& call) { run_direct<Words>(call); }

}  // namespace int8d
