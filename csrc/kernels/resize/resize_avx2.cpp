// Resizing, AVX2: 8 channels of a column, 16 elements of a row at a time.
#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {
namespace {

// (2048 - weight) * low + weight * high = 2048 * low + weight * (high - low)
inline __m256i blend(__m256i low, __m256i high, __m256i weight) {
  return _mm256_add_epi32(_mm256_slli_epi32(low, 11), _mm256_mullo_epi32(_mm256_sub_epi32(high, low), weight));
}

inline __m256i words(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

}  // namespace

void resize_columns_avx2(const uint8_t* in, ptrdiff_t pixel, std::span<const Blend> columns, int c, int32_t* out) {
  const __m256i half = _mm256_set1_epi32(1 << 10);
  const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (const Blend& b : columns) {
    const uint8_t *low = in + b.low * pixel, *high = in + b.high * pixel;
    const __m256i weight = _mm256_set1_epi32(b.weight);
    auto eight = [&](int i) {
      return _mm256_add_epi32(blend(avx2::load_bytes(low + i), avx2::load_bytes(high + i), weight), half);
    };
    int i = 0;
    for (; i + 8 <= c; i += 8) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), eight(i));
    if (i < c) _mm256_maskstore_epi32(out + i, _mm256_cmpgt_epi32(_mm256_set1_epi32(c - i), places), eight(i));
    out += c;
  }
}

void resize_rows_avx2(const int32_t* low, const int32_t* high, int32_t weight, size_t count, uint8_t* out) {
  const __m256i w = _mm256_set1_epi32(weight);
  auto eight = [&](size_t i) { return _mm256_srli_epi32(blend(words(low + i), words(high + i), w), 22); };
  size_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), avx2::pack_bytes(eight(i), eight(i + 8)));
  resize_rows_ref(low + i, high + i, weight, count - i, out + i);
}

}  // namespace int8d
