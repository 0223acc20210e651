// The largest of bytes, AVX2: 32 at a time.
#include "search.h"

namespace int8d {
namespace {

struct Bytes {
  using Reg = __m256i;
  static constexpr size_t kBytes = 32;
  static Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Reg load_first(const uint8_t* p, size_t count) {
    alignas(32) static constexpr auto kMask = [] {
      struct {
        uint8_t bytes[64];
      } mask{};
      for (size_t i = 0; i < 32; ++i) mask.bytes[i] = 0xff;
      return mask;
    }();
    return _mm256_and_si256(load(p), load(kMask.bytes + 32 - count));
  }
  static Reg most(Reg a, Reg b) { return _mm256_max_epu8(a, b); }
  static uint8_t largest(Reg v) {
    return largest16(_mm_max_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  static uint64_t equal(Reg v, uint8_t byte) {
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(static_cast<char>(byte)))));
  }
};

}  // namespace

void argmax_u8_avx2(const uint8_t* in, size_t rows, size_t count, int32_t* out) {
  argmax_by<Bytes>(in, rows, count, out);
}

}  // namespace int8d
