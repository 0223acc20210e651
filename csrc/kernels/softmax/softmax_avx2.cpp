// Softmax, AVX2: 8 gathered table entries an iteration. Quantized, a row of 64 elements or more looks its results up in
// a table of its own; a shorter one computes each.
#include <algorithm>

#include "../common/epilogue_avx2.h"
#include "../common/unroll.h"
#include "variants.h"

namespace int8d {
namespace {

constexpr size_t kLong = 64;

// 8 distances from the maximum; of a tail, `most - 0` where there is no element.
INT8D_INLINE inline __m256i distances(const uint8_t* in, size_t left, __m256i most) {
  return _mm256_sub_epi32(
      most, left >= 8 ? avx2::load_bytes(in) : _mm256_cvtepu8_epi32(avx2::load8(in, static_cast<int>(left))));
}

INT8D_INLINE inline __m256i gather(__m256i d, const SoftmaxParams& p) {
  return _mm256_i32gather_epi32(p.table.data(), d, 4);
}

uint8_t maximum(const uint8_t* in, size_t count) {
  __m256i wide = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    wide = _mm256_max_epu8(wide, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), wide);
  uint8_t most = *std::max_element(bytes, bytes + 32);
  for (; i < count; ++i) most = std::max(most, in[i]);
  return most;
}

int64_t total(const uint8_t* in, size_t count, uint8_t most, const SoftmaxParams& p) {
  const __m256i low = _mm256_set1_epi64x(0xffffffff), wide = _mm256_set1_epi32(most);
  __m256i even = _mm256_setzero_si256(), odd = even;
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i e = gather(distances(in + i, 8, wide), p);
    even = _mm256_add_epi64(even, _mm256_and_si256(e, low));
    odd = _mm256_add_epi64(odd, _mm256_srli_epi64(e, 32));
  }
  alignas(32) int64_t sums[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi64(even, odd));
  int64_t sum = sums[0] + sums[1] + sums[2] + sums[3];
  for (; i < count; ++i) sum += p.table[static_cast<size_t>(most - in[i])];
  return sum;
}

struct Divide {
  __m256d sum, inverse;
  explicit Divide(double total) : sum(_mm256_set1_pd(total)), inverse(_mm256_set1_pd(1 / total)) {}

  INT8D_INLINE inline __m128 four(__m128i entries) const {
    const __m256d e = _mm256_cvtepi32_pd(entries);
    __m256d x = _mm256_mul_pd(e, inverse);
    const __m256i dropped = _mm256_and_si256(_mm256_castpd_si256(x), _mm256_set1_epi64x(kDropped));
    const __m256i above = _mm256_cmpgt_epi64(dropped, _mm256_set1_epi64x(kHalfway - kDoubt - 1)),
                  below = _mm256_cmpgt_epi64(_mm256_set1_epi64x(kHalfway + kDoubt + 1), dropped);
    if (!_mm256_testz_si256(above, below)) [[unlikely]]
      x = _mm256_div_pd(e, sum);
    return _mm256_cvtpd_ps(x);
  }
  INT8D_INLINE inline __m256 operator()(__m256i entries) const {
    return _mm256_set_m128(four(_mm256_extracti128_si256(entries, 1)), four(_mm256_castsi256_si128(entries)));
  }
};

struct Quantize {
  __m256 scale, hi;
  __m256i zp;
  explicit Quantize(const SoftmaxParams& p)
      : scale(_mm256_set1_ps(p.scale)),
        hi(_mm256_set1_ps(static_cast<float>(255 - p.zp))),
        zp(_mm256_set1_epi32(p.zp)) {}
  INT8D_INLINE inline int64_t operator()(__m256 shares) const {
    const __m256 steps = _mm256_min_ps(_mm256_div_ps(shares, scale), hi);
    const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(steps), zp);
    return _mm_cvtsi128_si64(avx2::pack_bytes(q, q));
  }
};

void tabulate(const SoftmaxParams& p, double sum, const Divide& divide, const Quantize& quantize, uint8_t* results) {
  const double least = softmax_least(p, sum);
  for (size_t d = 0; d < 256; d += 8) {
    const __m256i e = _mm256_load_si256(reinterpret_cast<const __m256i*>(p.table.data() + d));
    const int32_t* entries = p.table.data() + d;
    if (static_cast<double>(*std::max_element(entries, entries + 8)) < least)
      std::fill_n(results + d, 8, static_cast<uint8_t>(p.zp));
    else
      avx2::store8(results + d, quantize(divide(e)), 8);
  }
}

}  // namespace

void softmax_u8_avx2(const SoftmaxCall& call) {
  const SoftmaxParams& p = *call.params;
  const Quantize quantize(p);
  const uint8_t* in = call.in;
  for (size_t row = 0; row < call.rows; ++row, in += call.count) {
    const uint8_t most = maximum(in, call.count);
    const __m256i wide = _mm256_set1_epi32(most);
    const double sum = static_cast<double>(total(in, call.count, most, p));
    const Divide divide(sum);
    const size_t begin = row * call.count;
    if (p.quantized && call.count >= kLong) {
      uint8_t* out = static_cast<uint8_t*>(call.out) + begin;
      alignas(32) uint8_t results[256];
      tabulate(p, sum, divide, quantize, results);
      const avx2::Lookup lookup(results);
      const __m256i bytes = _mm256_set1_epi8(static_cast<char>(most));
      size_t i = 0;
      for (; i + 32 <= call.count; i += 32) {
        const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), lookup(_mm256_sub_epi8(bytes, q)));
      }
      for (; i < call.count; ++i) out[i] = results[most - in[i]];
      continue;
    }
    for (size_t i = 0; i < call.count; i += 8) {
      const size_t left = std::min<size_t>(8, call.count - i);
      const __m256 shares = divide(gather(distances(in + i, left, wide), p));
      if (p.quantized) {
        avx2::store8(static_cast<uint8_t*>(call.out) + begin + i, quantize(shares), static_cast<int>(left));
      } else {
        alignas(32) float some[8];
        _mm256_store_ps(some, shares);
        std::copy_n(some, left, static_cast<float*>(call.out) + begin + i);
      }
    }
  }
}

}  // namespace int8d
