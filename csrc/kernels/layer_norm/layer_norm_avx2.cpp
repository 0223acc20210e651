// Layer normalization, AVX2: 32 elements an iteration of the sums, 16 of the rest, the last ones by the scalar form.
//
// n q and S are integers below 2^24, and so exact in fp32, as is their difference: no 32-bit product is needed.
#include "../common/epilogue_avx2.h"
#include "variants.h"

namespace int8d {
namespace {

struct Sums {
  uint64_t sum, squares;
};

Sums sums(const uint8_t* in, size_t n) {
  const __m256i zero = _mm256_setzero_si256(), low = _mm256_set1_epi16(0xff);
  __m256i sum = zero, squares = zero;
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i));
    const __m256i e = _mm256_and_si256(q, low), o = _mm256_srli_epi16(q, 8);
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(q, zero));
    squares = _mm256_add_epi32(squares, _mm256_add_epi32(_mm256_madd_epi16(e, e), _mm256_madd_epi16(o, o)));
  }
  alignas(32) uint64_t s[4];
  alignas(32) uint32_t d[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(s), sum);
  _mm256_store_si256(reinterpret_cast<__m256i*>(d), squares);
  Sums all{s[0] + s[1] + s[2] + s[3], 0};
  for (const uint32_t part : d) all.squares += part;
  for (; i < n; ++i) {
    all.sum += in[i];
    all.squares += static_cast<uint32_t>(in[i]) * in[i];
  }
  return all;
}

}  // namespace

void layer_norm_u8_16_avx2(const LayerNormCall& call) {
  const LayerNormParams& p = *call.params;
  const avx2::Clamp clamp(p.lo, p.hi, p.zp);
  const __m256 n = _mm256_set1_ps(static_cast<float>(call.n));
  const uint8_t* in = call.in;
  uint8_t* out = call.out;
  for (size_t row = 0; row < call.rows; ++row, in += call.n, out += call.n) {
    const Sums all = sums(in, call.n);
    const float factor = layer_norm_factor(call.n, all.sum, all.squares, p.epsilon);
    const __m256 r = _mm256_set1_ps(factor), s = _mm256_set1_ps(static_cast<float>(all.sum));
    auto eight = [&](size_t i) {
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(avx2::load_bytes(in + i)), n);
      const __m256 t = _mm256_mul_ps(_mm256_sub_ps(product, s), r);
      const __m256 y = _mm256_add_ps(_mm256_mul_ps(t, _mm256_loadu_ps(p.gamma + i)), _mm256_loadu_ps(p.beta + i));
      return _mm256_add_epi32(avx2::round_and_clamp(y, clamp), clamp.zp);
    };
    size_t i = 0;
    for (; i + 16 <= call.n; i += 16) avx2::store_bytes(out + i, avx2::pack_bytes(eight(i), eight(i + 8)), 16);
    for (; i < call.n; ++i)
      out[i] = normalize(static_cast<int32_t>(call.n) * in[i] - static_cast<int32_t>(all.sum), factor, p.gamma[i],
                         p.beta[i], p);
  }
}

}  // namespace int8d
