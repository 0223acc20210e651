// Strided copies, AVX512: tiles of 64 x 16 bytes or 8 x 8 words (tiles.h), the last ones masked; runs by 64 bytes.
#include "tiles.h"
#include "variants.h"

namespace int8d {
namespace {

struct Bytes {
  using Reg = __m512i;
  static constexpr int kLanes = 4;
  static Reg lo(Reg a, Reg b) { return _mm512_unpacklo_epi8(a, b); }
  static Reg hi(Reg a, Reg b) { return _mm512_unpackhi_epi8(a, b); }
  static Reg gather(const uint8_t* first, ptrdiff_t lane) {
    const uint8_t* const lanes[4] = {first, first + lane, first + 2 * lane, first + 3 * lane};
    return gather(lanes);
  }
  static Reg gather(const uint8_t* const (&lanes)[4]) {
    Reg v = _mm512_castsi128_si512(load16(lanes[0]));
    v = _mm512_inserti32x4(v, load16(lanes[1]), 1);
    v = _mm512_inserti32x4(v, load16(lanes[2]), 2);
    return _mm512_inserti32x4(v, load16(lanes[3]), 3);
  }
  static Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* out, Reg v) { _mm512_storeu_si512(out, v); }
  static void store(uint8_t* out, Reg v, int64_t count) { _mm512_mask_storeu_epi8(out, mask_of(count), v); }
  template <int Lane>
  static void store_lane(uint8_t* out, Reg v, int64_t count) {
    _mm_mask_storeu_epi8(out, static_cast<__mmask16>(mask_of(count)), _mm512_extracti32x4_epi32(v, Lane));
  }
  static __mmask64 mask_of(int64_t count) { return ~0ull >> (64 - count); }
};

struct Forms {
  static void runs(const Plane& p, int64_t bytes) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const uint8_t* in = p.in + r * p.in_row;
      uint8_t* out = p.out + r * p.out_row;
      int64_t i = 0;
      for (; i + 64 <= bytes; i += 64) Bytes::store(out + i, Bytes::load(in + i));
      if (i < bytes) Bytes::store(out + i, Bytes::load(in + i), bytes - i);
    }
  }
  static void transpose1(const Plane& p) { transpose_bytes<Bytes>(p); }
  static void transpose4(const Plane& p) { transpose_words(p); }
};

}  // namespace

void move_avx512vnni(const MoveCall& call) { move<Forms>(call); }

}  // namespace int8d
