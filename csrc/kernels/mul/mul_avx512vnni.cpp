// Quantized product, AVX512-VNNI: 64 elements an iteration, about 25 instructions and 9 loads.
//
// (a - zp1) * g, with g = b - zp2, is one vpdpwssd: a * g added to -zp1 * g. Words hold two bytes of `a` apart, so that
// a factor in the low or in the high half of its element picks one: vector k of four computes every fourth byte, and
// nothing needs to be unpacked. Clamping waits until the values are bytes, where packing has saturated already.
//
// A gate's factors are prepared once. Several pixels are taken as one run of bytes, so that a pixel of 32 or 144
// channels leaves no part of a register empty.
#include <algorithm>
#include <numeric>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "variants.h"

namespace int8d {
namespace {

// Of 64 elements: vector k has those of bytes k, k + 4, k + 8 …
struct Factors {
  __m512i weight[4];  // g, in the half that holds byte k
  __m512i offset[4];  // -zp1 * g
};

INT8D_INLINE inline void prepare(__m512i b, const MulParams& p, Factors& f) {
  unroll<4>([&](auto k) INT8D_INLINE {
    const __m512i byte = _mm512_and_si512(_mm512_srli_epi32(b, 8 * k), _mm512_set1_epi32(0xff));
    const __m512i g = _mm512_sub_epi32(byte, _mm512_set1_epi32(p.zp2));
    f.weight[k] = k < 2 ? _mm512_and_si512(g, _mm512_set1_epi32(0xffff)) : _mm512_slli_epi32(g, 16);
    f.offset[k] = _mm512_mullo_epi32(g, _mm512_set1_epi32(-p.zp1));
  });
}

struct Multiply {
  __m512 multiplier;
  __m512i zp, lo, hi, order;

  explicit Multiply(const MulParams& p)
      // A product of 1 saturates with 2^14 as with any larger multiplier, and none leaves int32.
      : multiplier(_mm512_set1_ps(std::min(p.multiplier, 0x1p14f))),
        zp(_mm512_set1_epi16(static_cast<int16_t>(p.zp))),
        lo(_mm512_set1_epi8(static_cast<char>(p.lo))),
        hi(_mm512_set1_epi8(static_cast<char>(p.hi))),
        // Within 128-bit lanes, packing leaves the four vectors one behind the other.
        order(_mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15))) {}

  INT8D_INLINE __m512i operator()(__m512i a, const Factors& f) const {
    const __m512i even = _mm512_and_si512(a, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(a, 8);
    auto quarter = [&](int k) INT8D_INLINE {
      const __m512i product = _mm512_dpwssd_epi32(f.offset[k], k % 2 ? odd : even, f.weight[k]);
      return avx512::round_narrow(product, multiplier);
    };
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(quarter(0), quarter(1)), zp);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(quarter(2), quarter(3)), zp);
    const __m512i q = _mm512_shuffle_epi8(_mm512_packus_epi16(low, high), order);
    return _mm512_min_epu8(_mm512_max_epu8(q, lo), hi);
  }
};

constexpr size_t kRun = 2048;  // elements whose factors are kept: 16 KB

inline __mmask64 first(size_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// each(i, mask) for every 64 of `count` elements.
template <typename Each>
INT8D_INLINE inline void by_64(size_t count, Each each) {
  size_t i = 0;
  for (; i + 64 <= count; i += 64) each(i, ~0ull);
  if (i < count) each(i, first(count - i));
}

void by_gate(const MulCall& call) {
  const Multiply multiply(*call.params);
  for (size_t c = 0, width; c < call.channels; c += width) {
    width = std::min(kRun, call.channels - c);
    // As many pixels as fill whole registers, where they are contiguous.
    const size_t pixels =
        width < call.channels ? 1 : std::min({64 / std::gcd(width, size_t{64}), kRun / width, call.pixels});
    alignas(64) uint8_t gate[kRun];
    for (size_t x = 0; x < pixels; ++x) std::copy_n(call.b + c, width, gate + x * width);
    Factors factors[kRun / 64];
    by_64(pixels * width, [&](size_t i, __mmask64)
                              INT8D_INLINE { prepare(_mm512_load_si512(gate + i), *call.params, factors[i / 64]); });
    for (size_t x = 0; x < call.pixels; x += pixels) {
      const uint8_t* a = call.a + x * call.channels + c;
      uint8_t* out = call.out + x * call.channels + c;
      by_64(std::min(pixels, call.pixels - x) * width, [&](size_t i, __mmask64 mask) INT8D_INLINE {
        const __m512i q = multiply(_mm512_maskz_loadu_epi8(mask, a + i), factors[i / 64]);
        _mm512_mask_storeu_epi8(out + i, mask, q);
      });
    }
  }
}

}  // namespace

void mul_u8_64_avx512vnni(const MulCall& call) {
  if (call.b_stride == 0) return by_gate(call);
  const Multiply multiply(*call.params);
  by_64(call.pixels * call.channels, [&](size_t i, __mmask64 mask) INT8D_INLINE {
    Factors factors;
    prepare(_mm512_maskz_loadu_epi8(mask, call.b + i), *call.params, factors);
    _mm512_mask_storeu_epi8(call.out + i, mask, multiply(_mm512_maskz_loadu_epi8(mask, call.a + i), factors));
  });
}

}  // namespace int8d
