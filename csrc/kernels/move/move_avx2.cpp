// Strided copies, AVX2: tiles of 32 x 16 bytes or 8 x 8 words (tiles.h); runs by 32 bytes.
#include "tiles.h"
#include "variants.h"

namespace int8d {
namespace {

// The first `count` of 32 bytes.
inline void store_first(uint8_t* out, __m256i v, int64_t count) {
  __m128i low = _mm256_castsi256_si128(v);
  if (count >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low);
    if (count == 16) return;
    low = _mm256_extracti128_si256(v, 1), out += 16, count -= 16;
    if (count == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low);
      return;
    }
  }
  uint64_t bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(low));
  if (count >= 8) {
    std::memcpy(out, &bytes, 8);
    bytes = static_cast<uint64_t>(_mm_extract_epi64(low, 1)), out += 8, count -= 8;
  }
  if (count >= 4) {
    std::memcpy(out, &bytes, 4);
    bytes >>= 32, out += 4, count -= 4;
  }
  if (count >= 2) {
    std::memcpy(out, &bytes, 2);
    bytes >>= 16, out += 2, count -= 2;
  }
  if (count) *out = static_cast<uint8_t>(bytes);
}

struct Bytes {
  using Reg = __m256i;
  static constexpr int kLanes = 2;
  static Reg lo(Reg a, Reg b) { return _mm256_unpacklo_epi8(a, b); }
  static Reg hi(Reg a, Reg b) { return _mm256_unpackhi_epi8(a, b); }
  static Reg gather(const uint8_t* first, ptrdiff_t lane) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(first)), load16(first + lane), 1);
  }
  static Reg gather(const uint8_t* const (&lanes)[2]) { return gather(lanes[0], lanes[1] - lanes[0]); }
  static Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(uint8_t* out, Reg v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v); }
  static void store(uint8_t* out, Reg v, int64_t count) { count == 32 ? store(out, v) : store_first(out, v, count); }
  template <int Lane>
  static void store_lane(uint8_t* out, Reg v, int64_t count) {
    store_first(out, _mm256_castsi128_si256(_mm256_extracti128_si256(v, Lane)), count);
  }
};

struct Forms {
  static void runs(const Plane& p, int64_t bytes) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const uint8_t* in = p.in + r * p.in_row;
      uint8_t* out = p.out + r * p.out_row;
      int64_t i = 0;
      for (; i + 32 <= bytes; i += 32) Bytes::store(out + i, Bytes::load(in + i));
      if (i < bytes) store_first(out + i, Bytes::load(in + i), bytes - i);
    }
  }
  static void transpose1(const Plane& p) { transpose_bytes<Bytes>(p); }
  static void transpose4(const Plane& p) { transpose_words(p); }
};

}  // namespace

void move_avx2(const MoveCall& call) { move<Forms>(call); }

}  // namespace int8d
