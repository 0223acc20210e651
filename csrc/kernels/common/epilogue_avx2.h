// requant.h for 8 channels of AVX2. Included by the *_avx2.cpp and *_avxvnni.cpp files only.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <optional>

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

// A table of 256 entries, 16 to a vpshufb, which looks up an index's low 4 bits, or gives 0 where its top bit is set.
// The index falls by 16 a step, and every step at which its top bit is clear adds (xor) what tells this step's entries
// from what the steps before it have given: for 0..127 those are the steps 0 .. q / 16, for 128..255 the 8 up to q
// / 16.
struct Lookup {
  __m256i entries[16];

  explicit Lookup(const uint8_t* table) {
    auto sixteen = [&](int k) {
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k)));
    };
    for (int k = 0; k < 16; ++k) {
      entries[k] = k ? _mm256_xor_si256(sixteen(k), sixteen(k - 1)) : sixteen(k);
      if (k >= 8) entries[k] = _mm256_xor_si256(entries[k], entries[k - 8]);
    }
  }

  __m256i operator()(__m256i q) const {
    const __m256i sixteen = _mm256_set1_epi8(16);
    __m256i found = _mm256_shuffle_epi8(entries[0], q);
    for (int k = 1; k < 16; ++k) {
      q = k <= 8 ? _mm256_sub_epi8(q, sixteen) : _mm256_subs_epi8(q, sixteen);  // what is negative by now stays so
      found = _mm256_xor_si256(found, _mm256_shuffle_epi8(entries[k], q));
    }
    return found;
  }
};

// From here on as in epilogue_avx512.h: where |acc * multiplier| is known to stay below 2^31, clamping can wait until
// the values are bytes. Four vectors become 32 bytes in order.
struct Finish {
  __m256i zp, lo, hi, order;
  std::optional<Lookup> lookup;
  explicit Finish(const Output& o) {
    const bool sum = o.add != nullptr;
    zp = _mm256_set1_epi16(static_cast<int16_t>(sum ? o.add->zp : o.zp));
    lo = _mm256_set1_epi8(static_cast<char>(sum ? o.add->lo : o.lo));
    hi = _mm256_set1_epi8(static_cast<char>(sum ? o.add->hi : o.hi));
    order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // dword 4 * lane + vector goes to 2 * vector + lane
    if (o.table) lookup.emplace(o.table);
  }
};

inline __m256i round_narrow(__m256i acc, __m256 multiplier) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier));
}

inline __m256i clamp4(__m256i v0, __m256i v1, __m256i v2, __m256i v3, const Finish& f) {
  const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(v0, v1), f.zp);
  const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(v2, v3), f.zp);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), f.order);
  return _mm256_min_epu8(_mm256_max_epu8(bytes, f.lo), f.hi);
}

inline __m256i finish4(__m256i v0, __m256i v1, __m256i v2, __m256i v3, const Finish& f) {
  const __m256i q = clamp4(v0, v1, v2, v3, f);
  return f.lookup ? (*f.lookup)(q) : q;
}

struct Sum {
  __m256 lo, hi, f1, f2, zp2;
  Sum(const Output& o, const AddParams& a)
      : lo(_mm256_set1_ps(static_cast<float>(o.lo - o.zp))),
        hi(_mm256_set1_ps(static_cast<float>(o.hi - o.zp))),
        f1(_mm256_set1_ps(a.f1)),
        f2(_mm256_set1_ps(a.f2)),
        zp2(_mm256_set1_ps(8388608.0f + static_cast<float>(a.zp2))) {}
};

inline __m256i sum_narrow(__m256i acc, __m256 multiplier, __m128i residual, const Sum& s) {
  __m256 v1 = _mm256_round_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier),
                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  v1 = _mm256_min_ps(_mm256_max_ps(v1, s.lo), s.hi);
  const __m256i biased = _mm256_or_si256(_mm256_cvtepu8_epi32(residual), _mm256_set1_epi32(0x4B000000));
  const __m256 v2 = _mm256_sub_ps(_mm256_castsi256_ps(biased), s.zp2);
  return _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(v1, s.f1), _mm256_mul_ps(v2, s.f2)));
}

// The first `count` of 8 bytes.
inline __m128i load8(const uint8_t* p, int count) {
  uint64_t bytes = 0;
  __builtin_memcpy(&bytes, p, static_cast<size_t>(std::min(count, 8)));
  return _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
}

inline void store8(uint8_t* out, int64_t bytes, int count) {
  __builtin_memcpy(out, &bytes, static_cast<size_t>(std::min(count, 8)));
}

}  // namespace int8d::avx2
