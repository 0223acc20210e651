// requant.h for 16 channels of AVX512. Included by the *_avx512vnni.cpp files only.
#pragma once
#include <immintrin.h>

#include "requant.h"

namespace int8d::avx512 {

inline __m512i broadcast4(const uint8_t* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return _mm512_set1_epi32(bytes);
}

struct Clamp {
  __m512 hi;
  __m512i lo, zp;
  Clamp(int32_t lo_q, int32_t hi_q, int32_t zero_point)
      : hi(_mm512_set1_ps(static_cast<float>(hi_q - zero_point))),
        lo(_mm512_set1_epi32(lo_q - zero_point)),
        zp(_mm512_set1_epi32(zero_point)) {}
};

// The value without its zero point. The upper clamp comes before the conversion; below INT_MIN the conversion gives
// INT_MIN, which the lower clamp mends.
inline __m512i round_and_clamp(__m512 v, const Clamp& c) {
  return _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_min_ps(v, c.hi)), c.lo);
}

inline __m512i requantize(__m512i acc, __m512 multiplier, const Clamp& c) {
  return round_and_clamp(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier), c);
}

struct Add {
  __m512 f1, f2;
  __m512i zp2;
  Clamp clamp;
  explicit Add(const AddParams& p)
      : f1(_mm512_set1_ps(p.f1)), f2(_mm512_set1_ps(p.f2)), zp2(_mm512_set1_epi32(p.zp2)), clamp(p.lo, p.hi, p.zp) {}
};

// v1 is the first operand without its zero point, q2 the second with it; the sum comes without its zero point.
inline __m512i add(__m512i v1, __m512i q2, const Add& a) {
  const __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(v1), a.f1);
  const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(q2, a.zp2)), a.f2);
  return round_and_clamp(_mm512_add_ps(t, u), a.clamp);
}

inline __m512i load_bytes(const uint8_t* p, __mmask16 mask) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
}

inline void store_bytes(uint8_t* p, __m512i v, __m512i zp, __mmask16 mask) {
  _mm_mask_storeu_epi8(p, mask, _mm512_cvtepi32_epi8(_mm512_add_epi32(v, zp)));
}

}  // namespace int8d::avx512
