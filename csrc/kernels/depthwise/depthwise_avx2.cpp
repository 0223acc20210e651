// Depthwise convolution (depthwise_ymm.h), AVX2, exact.
//
// The bytes of 2 taps are interleaved and widened to words, so that one vpmaddwd (which can't saturate here) adds
// 2 taps of 8 channels: 2 loads, 6 unpacks, 4 x (vpmaddwd + vpaddd) for 2 taps of 32 channels.
// Registers: 4 sums, 6 for interleaving, 1 of zeros.
#include "depthwise_ymm.h"

namespace int8d {
namespace {

struct Taps {
  static constexpr int kTaps = 2;
  static const uint8_t* weight(const DepthwisePacked& p) { return reinterpret_cast<const uint8_t*>(p.weight16.data()); }
  static void add(__m256i (&acc)[4], const uint8_t* in, const ptrdiff_t* at, const uint8_t* w) {
    const __m256i zero = _mm256_setzero_si256(), t0 = load(in + at[0]), t1 = load(in + at[1]);
    const __m256i low = _mm256_unpacklo_epi8(t0, t1), high = _mm256_unpackhi_epi8(t0, t1);
    auto dot2 = [&](int j, __m256i x) { acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x, load(w + 32 * j))); };
    dot2(0, _mm256_unpacklo_epi8(low, zero));
    dot2(1, _mm256_unpackhi_epi8(low, zero));
    dot2(2, _mm256_unpacklo_epi8(high, zero));
    dot2(3, _mm256_unpackhi_epi8(high, zero));
  }
};

}  // namespace

void depthwise_u8s8_32_avx2(const DepthwiseCall& call) { run_depthwise<Taps>(call); }

}  // namespace int8d
