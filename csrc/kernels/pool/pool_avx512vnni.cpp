// Pools, AVX512: 64 channels of a pixel at a time, the last ones masked.
//
// Maximum: one load and one vpmaxub a tap. Average: a load, two unpacks and two sums of words a tap; words hold 257
// taps, then they are added to sums of 32 bits.
#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "window.h"

namespace int8d {
namespace {

constexpr int kChannels = 64;

inline __mmask64 mask_of(int channels) { return channels >= 64 ? ~0ull : (1ull << channels) - 1; }

// 64 sums as 4 vectors, in the order of unpacking; packing restores the channels' order.
struct Sums {
  __m512i words[2], sums[4];
  int taps = 0;

  Sums() {
    for (__m512i& v : words) v = _mm512_setzero_si512();
    for (__m512i& v : sums) v = _mm512_setzero_si512();
  }
  void add(__m512i bytes) {
    const __m512i zero = _mm512_setzero_si512();
    words[0] = _mm512_add_epi16(words[0], _mm512_unpacklo_epi8(bytes, zero));
    words[1] = _mm512_add_epi16(words[1], _mm512_unpackhi_epi8(bytes, zero));
    if (++taps == 257) flush();
  }
  void flush() {
    const __m512i zero = _mm512_setzero_si512();
    for (int i = 0; i < 2; ++i) {
      sums[2 * i] = _mm512_add_epi32(sums[2 * i], _mm512_unpacklo_epi16(words[i], zero));
      sums[2 * i + 1] = _mm512_add_epi32(sums[2 * i + 1], _mm512_unpackhi_epi16(words[i], zero));
      words[i] = zero;
    }
    taps = 0;
  }
};

}  // namespace

void max_pool_u8_avx512vnni(const PoolCall& call) {
  const ConvShape s = call.shape;
  const View in = call.in, out = call.out;
  const int first = call.channel_begin, end = call.channel_end;
  const bool three = s.kh == 3 && s.kw == 3;
  for_pixels(call, [&](int n, int oy, int ox) INT8D_INLINE {
    uint8_t* to = out.at(n, oy, ox);
    if (three && inside(s, oy, ox)) {
      const uint8_t* window = in.at(n, oy * s.sh - s.pad_top, ox * s.sw - s.pad_left);
      for (int c = first; c < end; c += kChannels) {
        __m512i most = _mm512_setzero_si512();
        unroll<9>([&](auto tap) INT8D_INLINE {
          const uint8_t* from = window + tap / 3 * s.dh * in.row + tap % 3 * s.dw * in.pixel + c;
          most = _mm512_max_epu8(most, _mm512_loadu_si512(from));
        });
        _mm512_mask_storeu_epi8(to + c, mask_of(end - c), most);
      }
      return;
    }
    const Window w = clip(s, oy, ox);
    for (int c = first; c < end; c += kChannels) {
      __m512i most = _mm512_setzero_si512();
      for_taps(call, n, oy, ox, w,
               [&](const uint8_t* tap) { most = _mm512_max_epu8(most, _mm512_loadu_si512(tap + c)); });
      _mm512_mask_storeu_epi8(to + c, mask_of(end - c), most);
    }
  });
}

void avg_pool_u8_avx512vnni(const PoolCall& call) {
  const AvgPoolParams& p = *call.average;
  const avx512::Clamp clamp(p.lo, p.hi, p.out_zp);
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(call.shape, oy, ox);
    const __m512 m = _mm512_set1_ps(multiplier(call, w));
    const __m512i zero_points = _mm512_set1_epi32(w.inside() * p.in_zp);
    uint8_t* out = call.out.at(n, oy, ox);
    for (int c = call.channel_begin; c < call.channel_end; c += kChannels) {
      Sums s;
      for_taps(call, n, oy, ox, w, [&](const uint8_t* tap) { s.add(_mm512_loadu_si512(tap + c)); });
      s.flush();
      auto q = [&](int i) {
        const __m512i sum = _mm512_sub_epi32(s.sums[i], zero_points);
        return _mm512_add_epi32(avx512::requantize(sum, m, clamp), clamp.zp);
      };
      const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(q(0), q(1)), _mm512_packus_epi32(q(2), q(3)));
      _mm512_mask_storeu_epi8(out + c, mask_of(call.channel_end - c), bytes);
    }
  });
}

}  // namespace int8d
