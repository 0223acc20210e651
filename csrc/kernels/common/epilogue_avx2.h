// requant.h for 8 channels of AVX2. Included by the *_avx2.cpp files only.
#pragma once
#include <immintrin.h>

#include "requant.h"

namespace int8d::avx2 {

inline __m256i broadcast4(const uint8_t* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return _mm256_set1_epi32(bytes);
}

// Exact only for weights without a saturating pair (conv/pack.h).
inline __m256i dot4(__m256i acc, __m256i x, __m256i w) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}

struct Clamp {
  __m256 hi;
  __m256i lo, zp;
  Clamp(int32_t lo_q, int32_t hi_q, int32_t zero_point)
      : hi(_mm256_set1_ps(static_cast<float>(hi_q - zero_point))),
        lo(_mm256_set1_epi32(lo_q - zero_point)),
        zp(_mm256_set1_epi32(zero_point)) {}
};

// The value without its zero point; the clamps as in epilogue_avx512.h.
inline __m256i round_and_clamp(__m256 v, const Clamp& c) {
  return _mm256_max_epi32(_mm256_cvtps_epi32(_mm256_min_ps(v, c.hi)), c.lo);
}

inline __m256i requantize(__m256i acc, const float* multiplier, const Clamp& c) {
  return round_and_clamp(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_loadu_ps(multiplier)), c);
}

struct Add {
  __m256 f1, f2;
  __m256i zp2;
  Clamp clamp;
  explicit Add(const AddParams& p)
      : f1(_mm256_set1_ps(p.f1)), f2(_mm256_set1_ps(p.f2)), zp2(_mm256_set1_epi32(p.zp2)), clamp(p.lo, p.hi, p.zp) {}
};

// v1 is the first operand without its zero point, q2 the second with it; the sum comes without its zero point.
inline __m256i add(__m256i v1, __m256i q2, const Add& a) {
  const __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(v1), a.f1);
  const __m256 u = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(q2, a.zp2)), a.f2);
  return round_and_clamp(_mm256_add_ps(t, u), a.clamp);
}

inline __m256i load_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// 16 x s32 in 0..255 to bytes: the packs work within 128-bit lanes, the permutation restores the order.
inline __m128i pack_bytes(__m256i low, __m256i high) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// Stores the first `count` of 16 bytes: what comes next belongs to another panel, or to another thread.
inline void store_bytes(uint8_t* out, __m128i bytes, int count) {
  if (count >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    return;
  }
  alignas(16) uint8_t whole[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(whole), bytes);
  __builtin_memcpy(out, whole, static_cast<size_t>(count));
}

}  // namespace int8d::avx2
