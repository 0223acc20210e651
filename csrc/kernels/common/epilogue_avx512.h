// requant.h for 16 channels of AVX512. Included by the *_avx512vnni.cpp files only.
#pragma once
#include <immintrin.h>

#include <optional>

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

// Where |acc * multiplier| is known to stay below 2^31 (ConvPacked::narrow), clamping can wait until the values are
// bytes: packing saturates first to 16 and, the zero point added, to 8 bits, which no clamp to 0..255 can tell apart.
// Four vectors become 64 bytes in order; a function's table costs four instructions more.
struct Finish {
  __m512i zp, lo, hi, order;
  bool shifts, clamps;  // whether zp and the clamps change anything: after a ReLU they seldom do
  const uint8_t* table;
  explicit Finish(const Output& o) : table(o.table) {
    const bool sum = o.add != nullptr;
    zp = _mm512_set1_epi16(static_cast<int16_t>(sum ? o.add->zp : o.zp));
    lo = _mm512_set1_epi8(static_cast<char>(sum ? o.add->lo : o.lo));
    hi = _mm512_set1_epi8(static_cast<char>(sum ? o.add->hi : o.hi));
    shifts = (sum ? o.add->zp : o.zp) != 0;
    clamps = (sum ? o.add->lo : o.lo) > 0 || (sum ? o.add->hi : o.hi) < 255;
    // Packing works within 128-bit lanes: dword 4 * lane + vector goes to 4 * vector + lane.
    order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  }
};

inline __m512i round_narrow(__m512i acc, __m512 multiplier) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier));
}

// 64 bytes through a table of 256: each vpermi2b looks up 7 bits of the index, its top bit chooses.
inline __m512i lookup(__m512i q, const uint8_t* table) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), q, _mm512_loadu_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), q, _mm512_loadu_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(q), low, high);
}

// The same without the order: 4 bytes of each vector, one behind the other, in each 128-bit lane.
inline __m512i finish_lanes(__m512i v0, __m512i v1, __m512i v2, __m512i v3, const Finish& f) {
  __m512i low = _mm512_packs_epi32(v0, v1), high = _mm512_packs_epi32(v2, v3);
  if (f.shifts) {
    low = _mm512_adds_epi16(low, f.zp);
    high = _mm512_adds_epi16(high, f.zp);
  }
  __m512i q = _mm512_packus_epi16(low, high);
  if (f.clamps) q = _mm512_min_epu8(_mm512_max_epu8(q, f.lo), f.hi);
  return f.table ? lookup(q, f.table) : q;
}

inline __m512i finish4(__m512i v0, __m512i v1, __m512i v2, __m512i v3, const Finish& f) {
  return _mm512_permutexvar_epi32(f.order, finish_lanes(v0, v1, v2, v3, f));
}

// The fused residual, narrow: q1 is clamped in float, then rounded by adding and subtracting 1.5 * 2^23, which between
// bounds that are integers gives the same; the second operand becomes a float by the bits of 2^23 + q2.
struct Sum {
  __m512 lo, hi, f1, f2, zp2;
  Sum(const Output& o, const AddParams& a)
      : lo(_mm512_set1_ps(static_cast<float>(o.lo - o.zp))),
        hi(_mm512_set1_ps(static_cast<float>(o.hi - o.zp))),
        f1(_mm512_set1_ps(a.f1)),
        f2(_mm512_set1_ps(a.f2)),
        zp2(_mm512_set1_ps(8388608.0f + static_cast<float>(a.zp2))) {}
};

inline __m512i sum_narrow(__m512i acc, __m512 multiplier, __m128i residual, const Sum& s) {
  const __m512 magic = _mm512_set1_ps(0x1.8p23f), product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier);
  const __m512 v1 = _mm512_sub_ps(_mm512_add_ps(_mm512_min_ps(_mm512_max_ps(product, s.lo), s.hi), magic), magic);
  const __m512i biased = _mm512_or_si512(_mm512_cvtepu8_epi32(residual), _mm512_set1_epi32(0x4B000000));
  const __m512 v2 = _mm512_sub_ps(_mm512_castsi512_ps(biased), s.zp2);
  return _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(v1, s.f1), _mm512_mul_ps(v2, s.f2)));
}

// What the epilogue of every tile of a call needs. narrow: of the accumulators, see ConvPacked.
struct Epilogue {
  Output output;
  Finish finish;
  std::optional<Sum> sum;  // of the residual
  bool narrow;
  Epilogue(const Output& o, bool narrow_sums)
      : output(o), finish(o), narrow(narrow_sums && (!o.add || is_narrow(*o.add))) {
    if (o.add) sum.emplace(o, *o.add);
  }
};

inline __m128i load16(const uint8_t* p, uint32_t mask) {
  if ((mask & 0xffff) == 0xffff) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), p);
}

// Masked stores are slow; all but a group's last panel are whole.
inline void store32(uint8_t* out, __m256i bytes, uint32_t mask) {
  if (mask == ~0u)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  else
    _mm256_mask_storeu_epi8(out, mask, bytes);
}

inline void store16(uint8_t* out, __m128i bytes, uint32_t mask) {
  if ((mask & 0xffff) == 0xffff)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  else
    _mm_mask_storeu_epi8(out, static_cast<__mmask16>(mask), bytes);
}

}  // namespace int8d::avx512
