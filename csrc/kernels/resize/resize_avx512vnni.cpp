// Resizing, AVX512: 16 channels of a column, 64 elements of a row at a time; 16 of these take 2 loads, 6 operations and
// a share of the packing.
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
  const __m512i half = _mm512_set1_epi32(1 << 10);
  for (const Blend& b : columns) {
    const uint8_t *low = in + b.low * pixel, *high = in + b.high * pixel;
    const __m512i weight = _mm512_set1_epi32(b.weight);
    auto sixteen = [&](int i) { return _mm512_add_epi32(blend(load(low + i), load(high + i), weight), half); };
    int i = 0;
    for (; i + 16 <= c; i += 16) _mm512_storeu_si512(out + i, sixteen(i));
    if (i < c) _mm512_mask_storeu_epi32(out + i, static_cast<__mmask16>((1u << (c - i)) - 1), sixteen(i));
    out += c;
  }
}

void resize_rows_avx512vnni(const int32_t* low, const int32_t* high, int32_t weight, size_t count, uint8_t* out) {
  const __m512i w = _mm512_set1_epi32(weight);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  auto bytes = [&](__m512i a, __m512i b) { return _mm512_srli_epi32(blend(a, b, w), 22); };
  auto sixteen = [&](size_t i) { return bytes(_mm512_loadu_si512(low + i), _mm512_loadu_si512(high + i)); };
  size_t i = 0;
  for (; i + 64 <= count; i += 64) {  // packing works within 128-bit lanes; the permutation restores the order
    const __m512i first = _mm512_packus_epi32(sixteen(i), sixteen(i + 16));
    const __m512i second = _mm512_packus_epi32(sixteen(i + 32), sixteen(i + 48));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
  }
  for (; i < count; i += 16) {
    const auto mask = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffff);
    const __m512i a = _mm512_maskz_loadu_epi32(mask, low + i), b = _mm512_maskz_loadu_epi32(mask, high + i);
    _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(bytes(a, b)));
  }
}

}  // namespace int8d
