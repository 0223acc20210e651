// The largest of bytes, AVX512: 64 at a time.
#include "search.h"

namespace int8d {
namespace {

struct Bytes {
  using Reg = __m512i;
  static constexpr size_t kBytes = 64;
  static Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Reg load_first(const uint8_t* p, size_t count) { return _mm512_maskz_loadu_epi8((1ull << count) - 1, p); }
  static Reg most(Reg a, Reg b) { return _mm512_max_epu8(a, b); }
  static uint8_t largest(Reg v) {
    const __m256i half = _mm256_max_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return largest16(_mm_max_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
  static uint64_t equal(Reg v, uint8_t byte) {
    return _mm512_cmpeq_epi8_mask(v, _mm512_set1_epi8(static_cast<char>(byte)));
  }
};

}  // namespace

void argmax_u8_avx512vnni(const uint8_t* in, size_t rows, size_t count, int32_t* out) {
  argmax_by<Bytes>(in, rows, count, out);
}

}  // namespace int8d
