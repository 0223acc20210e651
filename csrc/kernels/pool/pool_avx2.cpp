// Pools, AVX2: 32 channels of a pixel at a time; as pool_avx512vnni.cpp.
#include "../common/epilogue_avx2.h"
#include "window.h"

namespace int8d {
namespace {

constexpr int kChannels = 32;

inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline void store(uint8_t* out, __m256i bytes, int channels) {
  avx2::store_bytes(out, _mm256_castsi256_si128(bytes), channels);
  if (channels > 16) avx2::store_bytes(out + 16, _mm256_extracti128_si256(bytes, 1), channels - 16);
}

}  // namespace

void max_pool_u8_avx2(const PoolCall& call) {
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(call.shape, oy, ox);
    uint8_t* out = call.out.at(n, oy, ox);
    for (int c = call.channel_begin; c < call.channel_end; c += kChannels) {
      __m256i most = _mm256_setzero_si256();
      for_taps(call, n, oy, ox, w, [&](const uint8_t* tap) { most = _mm256_max_epu8(most, load(tap + c)); });
      store(out + c, most, call.channel_end - c);
    }
  });
}

void avg_pool_u8_avx2(const PoolCall& call) {
  const AvgPoolParams& p = *call.average;
  const avx2::Clamp clamp(p.lo, p.hi, p.out_zp);
  const __m256i zero = _mm256_setzero_si256();
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(call.shape, oy, ox);
    const __m256 m = _mm256_set1_ps(multiplier(call, w));
    uint8_t* out = call.out.at(n, oy, ox);
    for (int c = call.channel_begin; c < call.channel_end; c += kChannels) {
      __m256i words[2] = {zero, zero}, sums[4];
      for (__m256i& v : sums) v = _mm256_set1_epi32(-w.inside() * p.in_zp);
      int taps = 0;
      auto flush = [&] {
        for (int i = 0; i < 2; ++i) {
          sums[2 * i] = _mm256_add_epi32(sums[2 * i], _mm256_unpacklo_epi16(words[i], zero));
          sums[2 * i + 1] = _mm256_add_epi32(sums[2 * i + 1], _mm256_unpackhi_epi16(words[i], zero));
          words[i] = zero;
        }
        taps = 0;
      };
      for_taps(call, n, oy, ox, w, [&](const uint8_t* tap) {
        const __m256i bytes = load(tap + c);
        words[0] = _mm256_add_epi16(words[0], _mm256_unpacklo_epi8(bytes, zero));
        words[1] = _mm256_add_epi16(words[1], _mm256_unpackhi_epi8(bytes, zero));
        if (++taps == 257) flush();  // as many as words hold
      });
      flush();
      auto q = [&](int i) {
        const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), m);
        return _mm256_add_epi32(avx2::round_and_clamp(scaled, clamp), clamp.zp);
      };
      store(out + c, _mm256_packus_epi16(_mm256_packus_epi32(q(0), q(1)), _mm256_packus_epi32(q(2), q(3))),
            call.channel_end - c);
    }
  });
}

}  // namespace int8d
