// Direct convolution (conv_ymm.h), AVX-VNNI. Tile: 6 pixels x 16 output channels.
//
// Registers: 12 sums, 2 weights, 1 broadcast. A step of 4 inputs takes 2 loads, 6 broadcasting loads and 12 vpdpbusd:
// at 2 a cycle that is 6 cycles, bound by vpdpbusd.
#include "conv_ymm.h"

namespace int8d {
namespace {

struct Bytes {
  static constexpr int kPixels = 6;
  static constexpr bool kWords = false, kSplit = false;
  static __m256i dot(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
};

}  // namespace

void conv_u8s8_6x16_avxvnni(const ConvCall& call) { run_direct<Bytes>(call); }

}  // namespace int8d
