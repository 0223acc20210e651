// Pools, AVX512: 64 channels of a pixel at a time, the last ones masked.
//
// Maximum: one load and one vpmaxub a tap. Average: carry-save adders turn the bytes of 4 taps into 1 vector of fours,
// 6 vpternlog, that is then added to two sums of words: 9 instructions and 4 loads. Words hold 257 fours, then they are
// added to sums of 32 bits. Where the taps lie end to end, loads run over several pixels, so that all of each is used,
// and their sums are added up by channel at the end.
#include <numeric>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "window.h"

namespace int8d {
namespace {

constexpr int kChannels = 64;

inline __mmask64 mask_of(int channels) { return channels >= 64 ? ~0ull : (1ull << channels) - 1; }

// a + b + c = sum + 2 * carry, byte by byte.
inline __m512i carry(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi32(a, b, c, 0xe8); }
inline __m512i sum(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }

// 64 sums of 32 bits, in the order of unpacking; packing restores the channels' order.
struct Sums {
  __m512i v[4];

  // Adds words of the even and the odd bytes.
  INT8D_INLINE void add(__m512i even, __m512i odd) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i first = _mm512_unpacklo_epi16(even, odd), second = _mm512_unpackhi_epi16(even, odd);
    v[0] = _mm512_add_epi32(v[0], _mm512_unpacklo_epi16(first, zero));
    v[1] = _mm512_add_epi32(v[1], _mm512_unpackhi_epi16(first, zero));
    v[2] = _mm512_add_epi32(v[2], _mm512_unpacklo_epi16(second, zero));
    v[3] = _mm512_add_epi32(v[3], _mm512_unpackhi_epi16(second, zero));
  }
};

// Rows of loads, or of pixels.
struct Grid {
  const uint8_t* first;
  int rows, columns;
  ptrdiff_t row, column;
};

// Loads of a grid whose right neighbours, which are read next, stay in L1.
constexpr int kFetched = 512;

// The sums of a grid of 64 bytes.
template <bool Fetch>
INT8D_INLINE inline Sums add_up(const Grid& grid) {
  Sums sums;
  const __m512i zero = _mm512_setzero_si512();
  for (__m512i& v : sums.v) v = zero;
  __m512i ones = zero, twos = zero;   // bytes still to be added, once and twice
  __m512i words = zero, high = zero;  // of fours: sums modulo 2^16 of 16-bit words, and of their higher bytes
  int fours = 0;
  auto flush = [&]() INT8D_INLINE {
    sums.add(_mm512_sub_epi16(words, _mm512_slli_epi16(high, 8)), high);
    words = high = zero;
    fours = 0;
  };
  auto add = [&](__m512i a, __m512i b, __m512i c, __m512i d) INT8D_INLINE {
    const __m512i twos_a = carry(ones, a, b);
    ones = sum(ones, a, b);
    const __m512i twos_b = carry(ones, c, d);
    ones = sum(ones, c, d);
    const __m512i four = carry(twos, twos_a, twos_b);
    twos = sum(twos, twos_a, twos_b);
    words = _mm512_add_epi16(words, four);
    high = _mm512_add_epi16(high, _mm512_srli_epi16(four, 8));
    if (++fours == 257) flush();
  };
  const uint8_t* row = grid.first;
  const ptrdiff_t column = grid.column;
  for (int y = 0; y < grid.rows; ++y, row += grid.row) {
    const uint8_t* at = row;
    auto load = [&](int i) INT8D_INLINE { return _mm512_loadu_si512(at + i * column); };
    int left = grid.columns;
    for (; left >= 4; left -= 4, at += 4 * column) {
      if constexpr (Fetch)
        for (int i = 0; i < 4; ++i) _mm_prefetch(at + i * column + 64, _MM_HINT_T0);
      add(load(0), load(1), load(2), load(3));
    }
    if (left > 0) add(load(0), left > 1 ? load(1) : zero, left > 2 ? load(2) : zero, zero);
  }
  flush();
  for (__m512i& v : sums.v) v = _mm512_slli_epi32(v, 2);
  const __m512i low = _mm512_set1_epi16(0xff);
  sums.add(_mm512_add_epi16(_mm512_and_si512(ones, low), _mm512_slli_epi16(_mm512_and_si512(twos, low), 1)),
           _mm512_add_epi16(_mm512_srli_epi16(ones, 8), _mm512_slli_epi16(_mm512_srli_epi16(twos, 8), 1)));
  return sums;
}

[[gnu::noinline]] Sums add_up(const Grid& grid) {
  return grid.rows * grid.columns <= kFetched ? add_up<true>(grid) : add_up<false>(grid);
}

// Most bytes after which the channels lie in loads of 64 bytes as at first.
constexpr int kRun = 2048;

// Pixels of that many bytes, or 1 where the pixels do not lie end to end, or are too few.
int run_pixels(const Grid& pixels, int channels) {
  const int run = 64 / std::gcd(64, channels);
  return pixels.column == channels && channels * run <= kRun && pixels.columns >= 16 * run ? run : 1;
}

// The sums of the channels of all pixels, channel by channel.
void add_up_runs(const Grid& pixels, int run, int channels, int32_t* sums) {
  const int bytes = run * channels;
  for (int at = 0; at < bytes; at += 64) {
    const Sums s = add_up({pixels.first + at, pixels.rows, pixels.columns / run, pixels.row, bytes});
    unroll<4>([&](auto lane) INT8D_INLINE {
      unroll<4>([&](auto i) INT8D_INLINE {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + at + 16 * lane + 4 * i),
                         _mm512_extracti32x4_epi32(s.v[i], lane));
      });
    });
  }
  for (int pixel = 1; pixel < run; ++pixel)
    for (int c = 0; c < channels; ++c) sums[c] += sums[pixel * channels + c];
  for (int y = 0; y < pixels.rows; ++y)
    for (int x = pixels.columns / run * run; x < pixels.columns; ++x) {
      const uint8_t* pixel = pixels.first + y * pixels.row + x * pixels.column;
      for (int c = 0; c < channels; ++c) sums[c] += pixel[c];
    }
}

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
  const ConvShape& s = call.shape;
  const avx512::Clamp clamp(p.lo, p.hi, p.out_zp);
  for_pixels(call, [&](int n, int oy, int ox) {
    const Window w = clip(s, oy, ox);
    const __m512 m = _mm512_set1_ps(multiplier(call, w));
    const __m512i zero_points = _mm512_set1_epi32(w.inside() * p.in_zp);
    auto q = [&](__m512i sum) {
      return _mm512_add_epi32(avx512::requantize(_mm512_sub_epi32(sum, zero_points), m, clamp), clamp.zp);
    };
    uint8_t* out = call.out.at(n, oy, ox);
    const int first = call.channel_begin, end = call.channel_end;
    Grid taps{call.in.at(n, oy * s.sh - s.pad_top + w.y0 * s.dh, ox * s.sw - s.pad_left + w.x0 * s.dw) + first,
              w.y1 - w.y0, w.x1 - w.x0, s.dh * call.in.row, s.dw * call.in.pixel};
    if (taps.row == taps.columns * taps.column) taps = {taps.first, 1, w.inside(), 0, taps.column};
    if (const int run = run_pixels(taps, end - first); run > 1) {
      alignas(64) int32_t sums[kRun];
      add_up_runs(taps, run, end - first, sums);
      for (int c = first; c < end; c += 16)
        _mm_mask_storeu_epi8(out + c, static_cast<__mmask16>(mask_of(end - c)),
                             _mm512_cvtepi32_epi8(q(_mm512_load_si512(sums + c - first))));
      return;
    }
    for (int c = first; c < end; c += kChannels, taps.first += kChannels) {
      const Sums sums = add_up(taps);
      const __m512i low = _mm512_packus_epi32(q(sums.v[0]), q(sums.v[1]));
      const __m512i high = _mm512_packus_epi32(q(sums.v[2]), q(sums.v[3]));
      _mm512_mask_storeu_epi8(out + c, mask_of(end - c), _mm512_packus_epi16(low, high));
    }
  });
}

}  // namespace int8d
