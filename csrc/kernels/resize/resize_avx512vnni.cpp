// Resizing, AVX512: 16 channels of a column, 16 elements of a row at a time: 2 loads and 9 operations.
#include <immintrin.h>

#include "variants.h"

namespace int8d {
namespace {

// (2048 - weight) * low + weight * high = 2048 * low + weight * (high - low)
inline __m512i blend(__m512i low, __m512i high, __m512i weight) {
  return _mm512_add_epi32(_mm512_slli_epi32(low, 11), _mm512_mullo_epi32(_mm512_sub_epi32(high, low), weight));
}

inline __m512i load(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace

void resize_columns_avx512vnni(const uint8_t* in, ptrdiff_t pixel, std::span<const Blend> columns, int c,
                               int32_t* out) {
  for (const Blend& b : columns) {
    const uint8_t *low = in + b.low * pixel, *high = in + b.high * pixel;
    const __m512i weight = _mm512_set1_epi32(b.weight);
    int i = 0;
    for (; i + 16 <= c; i += 16) _mm512_storeu_si512(out + i, blend(load(low + i), load(high + i), weight));
    if (i < c)
      _mm512_mask_storeu_epi32(out + i, static_cast<__mmask16>((1u << (c - i)) - 1),
                               blend(load(low + i), load(high + i), weight));
    out += c;
  }
}

void resize_rows_avx512vnni(const int32_t* low, const int32_t* high, int32_t weight, size_t count, uint8_t* out) {
  const __m512i w = _mm512_set1_epi32(weight), half = _mm512_set1_epi32(1 << 21);
  auto sixteen = [&](__m512i a, __m512i b) {
    return _mm512_cvtepi32_epi8(_mm512_srli_epi32(_mm512_add_epi32(blend(a, b, w), half), 22));
  };
  size_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     sixteen(_mm512_loadu_si512(low + i), _mm512_loadu_si512(high + i)));
  if (i == count) return;
  const auto mask = static_cast<__mmask16>((1u << (count - i)) - 1);
  _mm_mask_storeu_epi8(out + i, mask,
                       sixteen(_mm512_maskz_loadu_epi32(mask, low + i), _mm512_maskz_loadu_epi32(mask, high + i)));
}

}  // namespace int8d
