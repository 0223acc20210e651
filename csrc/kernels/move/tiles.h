// Transposition by tiles, over vectors of 128-bit lanes: in an unnamed namespace, as each instruction set has a file of
// its own.
//
// Bytes: 16 registers go four times through a perfect shuffle, register 2i and 2i + 1 becoming the interleaved halves
// of i and i + 8. Of the 8 bits of a byte's row and column, each turn rotates one out of the row and into the column:
// after four turns the two have changed places, in every lane of its own. A tile is tall, its lanes 16 rows below each
// other (whole registers are stored), or wide, its lanes 16 columns beside each other (whole registers are loaded), for
// planes of few rows. 64 unpacks a tile.
#pragma once
#include <immintrin.h>

#include <algorithm>

#include "../common/unroll.h"
#include "loops.h"

namespace int8d {
namespace {

inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

// V: Reg, kLanes, lo and hi (unpack bytes), gather(four or two addresses), load(address), store(address, reg, count),
// store_lane<lane>(address, reg, count).
template <typename V>
inline void shuffle(typename V::Reg (&r)[16]) {
  typename V::Reg t[16];
  unroll<2>([&](auto) INT8D_INLINE {
    unroll<8>([&](auto i) INT8D_INLINE { t[2 * i] = V::lo(r[i], r[i + 8]), t[2 * i + 1] = V::hi(r[i], r[i + 8]); });
    unroll<8>([&](auto i) INT8D_INLINE { r[2 * i] = V::lo(t[i], t[i + 8]), r[2 * i + 1] = V::hi(t[i], t[i + 8]); });
  });
}

// The plane's columns (contiguous in the output) are the tile's rows.
template <typename V>
void tall_tiles(const Plane& p) {
  constexpr int64_t kTall = 16 * V::kLanes;
  for (int64_t c = 0; c < p.columns; c += kTall) {
    const int64_t count = std::min(kTall, p.columns - c);
    for (int64_t r = 0; r < p.rows; r += 16) {
      const int64_t rows = std::min<int64_t>(16, p.rows - r);
      const uint8_t* in = p.in + c * p.in_column + r;
      typename V::Reg v[16];
      if (count == kTall) {
        unroll<16>([&](auto i) INT8D_INLINE { v[i] = V::gather(in + i * p.in_column, 16 * p.in_column); });
      } else {  // the last column stands for those that lack
        for (int64_t i = 0; i < 16; ++i) {
          const uint8_t* lanes[V::kLanes];
          for (int64_t l = 0; l < V::kLanes; ++l) lanes[l] = in + std::min(16 * l + i, count - 1) * p.in_column;
          v[i] = V::gather(lanes);
        }
      }
      shuffle<V>(v);
      uint8_t* out = p.out + r * p.out_row + c;
      if (rows == 16 && count == kTall)
        unroll<16>([&](auto i) INT8D_INLINE { V::store(out + i * p.out_row, v[i]); });
      else
        for (int64_t i = 0; i < rows; ++i) V::store(out + i * p.out_row, v[i], count);
    }
  }
}

template <typename V>
void wide_tiles(const Plane& p) {
  constexpr int64_t kWide = 16 * V::kLanes;
  for (int64_t c = 0; c < p.columns; c += 16) {
    const int64_t count = std::min<int64_t>(16, p.columns - c);
    for (int64_t r = 0; r < p.rows; r += kWide) {
      const int64_t rows = std::min(kWide, p.rows - r);
      const uint8_t* in = p.in + c * p.in_column + r;
      typename V::Reg v[16];
      for (int64_t i = 0; i < 16; ++i) v[i] = V::load(in + std::min(i, count - 1) * p.in_column);
      shuffle<V>(v);
      uint8_t* out = p.out + r * p.out_row + c;
      unroll<V::kLanes>([&](auto lane) INT8D_INLINE {
        uint8_t* first = out + 16 * lane * p.out_row;
        const int64_t here = std::min<int64_t>(16, rows - 16 * lane);
        for (int64_t i = 0; i < here; ++i) V::template store_lane<lane>(first + i * p.out_row, v[i], count);
      });
    }
  }
}

template <typename V>
void transpose_bytes(const Plane& p) {
  constexpr int64_t kTall = 16 * V::kLanes;
  const int64_t left = p.columns % kTall;
  const bool wide = left > 0 && left <= 16 && p.rows > 16;  // these take less as a wide tile's rows
  Plane tall = p, rest = p;
  tall.columns -= wide ? left : 0;
  tall_tiles<V>(tall);
  if (!wide) return;
  rest.columns = left;
  rest.in += tall.columns * p.in_column, rest.out += tall.columns;
  wide_tiles<V>(rest);
}

// Elements of 4 bytes, 8 x 8: two turns of unpacking within the lanes, then their halves change places. 24 shuffles.
void transpose_words(const Plane& p) {
  const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t c = 0; c < p.columns; c += 8) {
    const int64_t count = std::min<int64_t>(8, p.columns - c);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), places);
    for (int64_t r = 0; r < p.rows; r += 8) {
      const int64_t rows = std::min<int64_t>(8, p.rows - r);
      const uint8_t* in = p.in + c * p.in_column + r * 4;
      __m256i v[8], t[8];
      for (int64_t i = 0; i < 8; ++i)
        v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + std::min(i, count - 1) * p.in_column));
      unroll<4>([&](auto i) INT8D_INLINE {
        constexpr int a = i / 2 * 4 + i % 2;
        t[2 * i] = _mm256_unpacklo_epi32(v[a], v[a + 2]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[a], v[a + 2]);
      });
      unroll<2>([&](auto h) INT8D_INLINE {
        unroll<2>([&](auto i) INT8D_INLINE {
          v[4 * h + 2 * i] = _mm256_unpacklo_epi32(t[4 * h + i], t[4 * h + 2 + i]);
          v[4 * h + 2 * i + 1] = _mm256_unpackhi_epi32(t[4 * h + i], t[4 * h + 2 + i]);
        });
      });
      unroll<4>([&](auto i) INT8D_INLINE {
        t[i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x20);
        t[4 + i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x31);
      });
      uint8_t* out = p.out + r * p.out_row + c * 4;
      for (int64_t i = 0; i < rows; ++i)
        _mm256_maskstore_epi32(reinterpret_cast<int*>(out + i * p.out_row), mask, t[i]);
    }
  }
}

}  // namespace
}  // namespace int8d
