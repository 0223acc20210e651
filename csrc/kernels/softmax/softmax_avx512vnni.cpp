// Softmax, AVX512-VNNI. Per 64 elements, 12 cycles for the sum and 3 for quantized results; per row, some 8 cycles for
// every 16 table entries that do not round to zero.
//
// The sum is taken byte by byte: the four planes of the table are looked up for 64 elements at a time (vpermi2b) and
// summed by vpsadbw. Quantized, a row has as many results as the table has entries: they are computed once a row, as
// far as they differ from the zero point, and looked up. As fp32, a result is computed from its gathered entry.
#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "variants.h"

namespace int8d {
namespace {

inline __mmask64 first(size_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

inline __m512i load(const uint8_t* in, size_t left) {
  return left >= 64 ? _mm512_loadu_si512(in) : _mm512_maskz_loadu_epi8(first(left), in);
}

uint8_t maximum(const uint8_t* in, size_t count) {
  __m512i most = _mm512_setzero_si512();
  for (size_t i = 0; i < count; i += 64) most = _mm512_max_epu8(most, load(in + i, count - i));
  const __m256i half = _mm256_max_epu8(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
  const __m128i bytes = _mm_max_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  // Of words: the minimum of 255 - q, the smaller byte of each word in its low half.
  const __m128i flipped = _mm_xor_si128(bytes, _mm_set1_epi8(-1));
  const __m128i words = _mm_and_si128(_mm_min_epu8(flipped, _mm_srli_epi16(flipped, 8)), _mm_set1_epi16(0xff));
  return static_cast<uint8_t>(255 - _mm_cvtsi128_si32(_mm_minpos_epu16(words)));
}

int64_t total(const uint8_t* in, size_t count, __m512i most, const SoftmaxParams& p) {
  __m512i sums[4];
  unroll<4>([&](auto plane) INT8D_INLINE { sums[plane] = _mm512_setzero_si512(); });
  for (size_t i = 0; i < count; i += 64) {
    const __m512i d = _mm512_sub_epi8(most, load(in + i, count - i));
    const __mmask64 mask = first(count - i);
    unroll<4>([&](auto plane) INT8D_INLINE {
      const __m512i bytes = _mm512_maskz_mov_epi8(mask, avx512::lookup(d, p.planes[plane].data()));
      sums[plane] = _mm512_add_epi64(sums[plane], _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    });
  }
  const __m512i low = _mm512_add_epi64(sums[0], _mm512_slli_epi64(sums[1], 8)),
                high = _mm512_add_epi64(_mm512_slli_epi64(sums[2], 16), _mm512_slli_epi64(sums[3], 24));
  return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

struct Divide {
  __m512d sum, inverse;
  explicit Divide(double total) : sum(_mm512_set1_pd(total)), inverse(_mm512_set1_pd(1 / total)) {}

  INT8D_INLINE inline __m256 eight(__m256i entries) const {
    const __m512d e = _mm512_cvtepi32_pd(entries);
    __m512d x = _mm512_mul_pd(e, inverse);
    const __m512i dropped = _mm512_and_si512(_mm512_castpd_si512(x), _mm512_set1_epi64(kDropped));
    const __m512i beyond = _mm512_sub_epi64(dropped, _mm512_set1_epi64(kHalfway - kDoubt));
    if (_mm512_cmple_epu64_mask(beyond, _mm512_set1_epi64(2 * kDoubt))) [[unlikely]]
      x = _mm512_div_pd(e, sum);
    return _mm512_cvtpd_ps(x);
  }
  INT8D_INLINE inline __m512 operator()(__m512i entries) const {
    const __m256 low = eight(_mm512_castsi512_si256(entries)), high = eight(_mm512_extracti64x4_epi64(entries, 1));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
};

// A row's quantized results: for every distance from its maximum.
struct Results {
  __m512i quarters[4];

  // What surely rounds to the zero point is not computed, 16 entries at a time.
  Results(const SoftmaxParams& p, double sum, const Divide& divide) {
    const __m512i zp = _mm512_set1_epi32(p.zp);
    const __m512 scale = _mm512_set1_ps(p.scale), hi = _mm512_set1_ps(static_cast<float>(255 - p.zp));
    // An entry is an integer; a bound beyond int32 is none.
    const double bound = std::min(softmax_least(p, sum), 2147483647.0);
    const __m512i least = _mm512_set1_epi32(_mm_cvttsd_si32(_mm_set_sd(bound)));
    unroll<4>([&](auto quarter) INT8D_INLINE {
      __m128i bytes[4];
      unroll<4>([&](auto i) INT8D_INLINE {
        const __m512i e = _mm512_load_si512(p.table.data() + 64 * quarter + 16 * i);
        __m512i q = zp;
        if (_mm512_cmpge_epi32_mask(e, least)) {
          const __m512 steps = _mm512_div_ps(divide(e), scale);
          q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps(steps, hi)), zp);
        }
        bytes[i] = _mm512_cvtepi32_epi8(q);
      });
      const __m256i low = _mm256_set_m128i(bytes[1], bytes[0]), high = _mm256_set_m128i(bytes[3], bytes[2]);
      quarters[quarter] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    });
  }

  INT8D_INLINE inline __m512i operator()(__m512i d) const {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(d), _mm512_permutex2var_epi8(quarters[0], d, quarters[1]),
                                  _mm512_permutex2var_epi8(quarters[2], d, quarters[3]));
  }
};

}  // namespace

void softmax_u8_avx512vnni(const SoftmaxCall& call) {
  const SoftmaxParams& p = *call.params;
  const uint8_t* in = call.in;
  for (size_t row = 0; row < call.rows; ++row, in += call.count) {
    const __m512i most = _mm512_set1_epi8(static_cast<char>(maximum(in, call.count)));
    const double sum = static_cast<double>(total(in, call.count, most, p));
    const Divide divide(sum);
    if (p.quantized) {
      const Results results(p, sum, divide);
      uint8_t* out = static_cast<uint8_t*>(call.out) + row * call.count;
      for (size_t i = 0; i < call.count; i += 64) {
        const __m512i q = results(_mm512_sub_epi8(most, load(in + i, call.count - i)));
        if (call.count - i >= 64)
          _mm512_storeu_si512(out + i, q);
        else
          _mm512_mask_storeu_epi8(out + i, first(call.count - i), q);
      }
    } else {
      float* out = static_cast<float*>(call.out) + row * call.count;
      for (size_t i = 0; i < call.count; i += 16) {
        const __mmask16 mask = static_cast<__mmask16>(first(call.count - i));
        const __m128i d = _mm_sub_epi8(_mm512_castsi512_si128(most), _mm_maskz_loadu_epi8(mask, in + i));
        const __m512i e = _mm512_i32gather_epi32(_mm512_cvtepu8_epi32(d), p.table.data(), 4);
        _mm512_mask_storeu_ps(out + i, mask, divide(e));
      }
    }
  }
}

}  // namespace int8d
