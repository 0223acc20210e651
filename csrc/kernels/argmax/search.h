// What the fast kernels share: the maximum by vectors, then the first vector that holds it. A template over the
// vectors; in an unnamed namespace, as each instruction set has a file of its own.
#pragma once
#include <immintrin.h>

#include <bit>

#include "variants.h"

namespace int8d {
namespace {

// The largest of 16 bytes. vphminposuw finds the least word: of the complements, the lesser byte of each pair.
inline uint8_t largest16(__m128i v) {
  const __m128i complement = _mm_xor_si128(v, _mm_set1_epi8(-1));
  const __m128i least = _mm_min_epu8(complement, _mm_srli_epi16(complement, 8));
  return static_cast<uint8_t>(~_mm_cvtsi128_si32(_mm_minpos_epu16(least)));
}

// V: Reg, kBytes, load(address), load_first(address, count): the others 0, most(a, b), largest(reg), equal(reg, byte):
// a bit a byte.
template <typename V>
void argmax_by(const uint8_t* in, size_t rows, size_t count, int32_t* out) {
  const size_t whole = count / V::kBytes * V::kBytes;
  for (size_t r = 0; r < rows; ++r, in += count) {
    typename V::Reg most = whole < count ? V::load_first(in + whole, count - whole) : V::load(in);
    for (size_t i = 0; i < whole; i += V::kBytes) most = V::most(most, V::load(in + i));
    const uint8_t largest = V::largest(most);
    size_t i = 0;
    uint64_t found = 0;
    while (!(found = V::equal(V::load(in + i), largest))) i += V::kBytes;
    out[r] = static_cast<int32_t>(i) + std::countr_zero(found);
  }
}

}  // namespace
}  // namespace int8d
