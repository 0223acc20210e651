// Depthwise convolution (depthwise_ymm.h), AVX-VNNI.
//
// The bytes of 4 taps are interleaved, so that one vpdpbusd adds 4 taps of 8 channels: 4 loads, 8 unpacks and 4
// vpdpbusd for 4 taps of 32 channels.
#include "depthwise_ymm.h"

namespace int8d {
namespace {

struct Taps {
  static constexpr int kTaps = 4;
  static const uint8_t* weight(const DepthwisePacked& p) { return reinterpret_cast<const uint8_t*>(p.weight8.data()); }
  static void add(__m256i (&acc)[4], const uint8_t* in, const ptrdiff_t* at, const uint8_t* w) {
    const __m256i t0 = load(in + at[0]), t1 = load(in + at[1]), t2 = load(in + at[2]), t3 = load(in + at[3]);
    const __m256i low01 = _mm256_unpacklo_epi8(t0, t1), high01 = _mm256_unpackhi_epi8(t0, t1);
    const __m256i low23 = _mm256_unpacklo_epi8(t2, t3), high23 = _mm256_unpackhi_epi8(t2, t3);
    acc[0] = _mm256_dpbusd_avx_epi32(acc[0], _mm256_unpacklo_epi16(low01, low23), load(w));
    acc[1] = _mm256_dpbusd_avx_epi32(acc[1], _mm256_unpackhi_epi16(low01, low23), load(w + 32));
    acc[2] = _mm256_dpbusd_avx_epi32(acc[2], _mm256_unpacklo_epi16(high01, high23), load(w + 64));
    acc[3] = _mm256_dpbusd_avx_epi32(acc[3], _mm256_unpackhi_epi16(high01, high23), load(w + 96));
  }
};

}  // namespace

void depthwise_u8s8_32_avxvnni(const DepthwiseCall& call) { run_depthwise<Taps>(call); }

}  // namespace int8d
