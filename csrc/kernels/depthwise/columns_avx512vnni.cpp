// Depthwise convolution of 3x3 and 5x5, strides 1 and 2, AVX512-VNNI. Two output rows x 2 registers, each of a pixel's
// 64 channels, or, of the last 32 or 16 channels, of 2 or 4 pixels.
//
// First, the input columns of a segment are interleaved (depthwise_pack_columns) into a scratch that stays in L1: 4
// loads and 8 unpacks a register of columns, 6 rows: 8 and 16. It has a plane for each quarter of the channels, so that
// 64 bytes at any pixel are an operand; with stride 2, where a register has several pixels, a plane has first the even
// columns, then the odd ones, so that this holds there too. Then two registers of two rows are computed at a time, one
// plane after the other, so that 3x3 takes, for 256 outputs, 48 vpdpbusd, 48 instructions to requantize and 40 loads;
// packing restores the channels' order. Registers: 16 sums, up to 6 columns; weights come from memory. Of 8 channels or
// fewer, the upper two quarters are left out.
// With stride 2, and in an odd last row, one output row is computed.
#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "pack.h"

namespace int8d {
namespace {

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }
inline __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store(void* p, __m512i v) { _mm512_storeu_si512(p, v); }

// One block of one segment of one or two rows.
struct Block {
  const uint8_t* in[6];  // the rows of the windows' columns; where a row has no weight, any that can be read
  ptrdiff_t in_pixel;
  uint8_t* out[2];
  ptrdiff_t out_pixel;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  int width, channels;  // output pixels; channels to go
  bool narrow;
};

// Output columns whose input columns are in the scratch: 8 to 16 KB. As many times more where pixels share a register.
constexpr int segment(int k, int stride) { return k == 5 && stride == 2 ? 14 : 28; }

// Bytes of the scratch: of a plane's columns of one parity, of a plane.
template <int K, int Stride>
constexpr int kParity = (segment(K, Stride) + (K - 1) / Stride) * 64;
template <int K, int Stride>
constexpr int kPlane = kParity<K, Stride> * Stride;

// Of a plane: from an even column to the odd one at its right, and from one output pixel's first column to the next's.
template <int K, int Stride, int Pitch>
constexpr int kOdd = Pitch == 64 ? 64 : kParity<K, Stride>;
template <int Stride, int Pitch>
constexpr int kStep = Pitch == 64 ? Stride * 64 : Pitch;

// Pixels side by side, of Pitch channels each.
template <int Pitch>
INT8D_INLINE inline __m512i load_pixels(const uint8_t* row, const ptrdiff_t* at) {
  if constexpr (Pitch == 64) return load(row + at[0]);
  if constexpr (Pitch == 32)
    return _mm512_inserti64x4(_mm512_castsi256_si512(load32(row + at[0])), load32(row + at[1]), 1);
  if constexpr (Pitch == 16) {
    __m512i v = _mm512_castsi128_si512(load16(row + at[0]));
    v = _mm512_inserti32x4(v, load16(row + at[1]), 1);
    v = _mm512_inserti32x4(v, load16(row + at[2]), 2);
    return _mm512_inserti32x4(v, load16(row + at[3]), 3);
  }
}

// Interleaves the columns into planes. Quarters: how many have channels.
template <int K, int Stride, int Pitch, int Quarters>
void gather(const Block& b, int columns, uint8_t* scratch) {
  constexpr int kJoined = 64 / Pitch, kBytes = kPlane<K, Stride>;
  auto interleave = [](uint8_t* to, __m512i r0, __m512i r1, __m512i r2, __m512i r3) INT8D_INLINE {
    const __m512i low01 = _mm512_unpacklo_epi8(r0, r1), low23 = _mm512_unpacklo_epi8(r2, r3);
    store(to, _mm512_unpacklo_epi16(low01, low23));
    store(to + kBytes, _mm512_unpackhi_epi16(low01, low23));
    if constexpr (Quarters == 4) {
      const __m512i high01 = _mm512_unpackhi_epi8(r0, r1), high23 = _mm512_unpackhi_epi8(r2, r3);
      store(to + 2 * kBytes, _mm512_unpacklo_epi16(high01, high23));
      store(to + 3 * kBytes, _mm512_unpackhi_epi16(high01, high23));
    }
  };
  if constexpr (Pitch == 64 && (K == 3 || Stride == 1)) {  // the same, with fewer instructions for addresses
    const uint8_t *r0 = b.in[0], *r1 = b.in[1], *r2 = b.in[2], *r3 = b.in[3], *r4 = b.in[4], *r5 = b.in[5];
    const ptrdiff_t pixel = b.in_pixel;
    for (ptrdiff_t at = 0; columns > 0; --columns, at += pixel, scratch += 64) {
      interleave(scratch, load(r0 + at), load(r1 + at), load(r2 + at), load(r3 + at));
      if constexpr (K == 5) {
        const ptrdiff_t next = at + (columns > 1 ? pixel : 0);
        interleave(scratch + 4 * kBytes, load(r4 + at), load(r5 + at), load(r4 + next), load(r5 + next));
      }
    }
    return;
  }
  for (int x = 0; x < columns; x += kJoined * Stride, scratch += kJoined * kStep<Stride, Pitch>) {
    // Past the last window's column, any that can be read will do.
    ptrdiff_t at[2][kJoined];
    for (int parity = 0; parity < (K == 5 ? 2 : Stride); ++parity)
      for (int i = 0; i < kJoined; ++i) at[parity][i] = std::min(x + i * Stride + parity, columns - 1) * b.in_pixel;
    auto row = [&](int y, int parity) INT8D_INLINE { return load_pixels<Pitch>(b.in[y], at[parity]); };
    unroll<Stride>([&](auto parity) INT8D_INLINE {
      interleave(scratch + parity * kOdd<K, Stride, Pitch>, row(0, parity), row(1, parity), row(2, parity),
                 row(3, parity));
    });
    if constexpr (K == 5) interleave(scratch + 4 * kBytes, row(4, 0), row(5, 0), row(4, 1), row(5, 1));
  }
}

// Pixels of 16 or 32 channels in all lie side by side in memory already.
template <int K, int Stride>
void gather_contiguous(const Block& b, int columns, uint8_t* scratch) {
  Block bytes = b;
  bytes.in_pixel = 64;
  gather<K, Stride, 64, 4>(bytes, (columns * static_cast<int>(b.in_pixel) + 63) / 64, scratch);
}

// The rare case, see ConvPacked::narrow. sums: of the pixels of a register, slot by slot.
[[gnu::noinline]] void finish_wide(const Block& b, const int32_t* sums, uint8_t* out, int pitch, int pixels,
                                   const Output& output) {
  for (int pixel = 0; pixel < pixels; ++pixel, out += b.out_pixel)
    for (int c = 0; c < std::min(pitch, b.channels); ++c) {
      const int slot = block_slot(pixel * pitch + c, 64);
      out[c] = finish(sums[slot], b.multiplier[slot], 0, output);
    }
}

inline __mmask64 first_bytes(int count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// Up to `pixels` pixels of a register. mask: of a pixel's bytes.
template <int Pitch>
INT8D_INLINE inline void store_pixels(uint8_t* out, __m512i q, int pixels, const Block& b, __mmask64 mask) {
  const bool whole = b.channels >= Pitch;
  if constexpr (Pitch == 64) {
    if (whole)
      store(out, q);
    else
      _mm512_mask_storeu_epi8(out, mask, q);
  } else if (b.out_pixel == Pitch && whole) {
    if (pixels >= 64 / Pitch)
      store(out, q);
    else
      _mm512_mask_storeu_epi8(out, first_bytes(pixels * Pitch), q);
  } else {
    unroll<64 / Pitch>([&](auto i) INT8D_INLINE {
      if (i >= pixels) return;
      uint8_t* to = out + i * b.out_pixel;
      if constexpr (Pitch == 32) {
        avx512::store32(to, _mm512_extracti64x4_epi64(q, i), static_cast<uint32_t>(mask));
      } else {
        const __m128i pixel = _mm512_extracti32x4_epi32(q, i);
        if (b.channels == 8)
          _mm_storel_epi64(reinterpret_cast<__m128i*>(to), pixel);
        else
          avx512::store16(to, pixel, static_cast<uint32_t>(mask));
      }
    });
  }
}

template <int K, int Stride, int Rows, int Pitch, int Quarters>
[[gnu::noinline]] void compute(const Block& block, const uint8_t* scratch, const Output& output) {
  constexpr int kVectors = column_vectors(K), kRegisters = 2, kJoined = 64 / Pitch;
  const avx512::Finish f(output);
  const Block b = block;  // in registers: stores of bytes may change what is reached through a reference
  const __mmask64 mask = first_bytes(std::min(b.channels, Pitch));
  for (int x = 0; x < b.width; x += kRegisters * kJoined) {
    const uint8_t* column = scratch + x * kStep<Stride, Pitch>;
    __m512i acc[Rows][kRegisters][4];
    unroll<Quarters>([&](auto j) INT8D_INLINE {
      const __m512i bias = load(b.bias + j * 16);
      unroll<Rows>([&](auto r) INT8D_INLINE {  //
        unroll<kRegisters>([&](auto i) INT8D_INLINE { acc[r][i][j] = bias; });
      });
      auto load_column = [&](auto quad, int x) INT8D_INLINE {
        const int at = x % Stride * kOdd<K, Stride, Pitch> + x / Stride * kStep<Stride, Pitch>;
        __m512i data = load(column + (4 * quad + j) * kPlane<K, Stride> + at);
        asm("" : "+v"(data));
        return data;
      };
      auto add = [&](auto v, const auto& data) INT8D_INLINE {
        unroll<Rows>([&](auto r) INT8D_INLINE {
          // Every column and weight is loaded once for all that it serves, whatever the compiler thinks.
          __m512i weight = load(b.weight + ((r * kVectors + v) * 4 + j) * 64);
          asm("" : "+v"(weight));
          unroll<kRegisters>([&](auto i)
                                 INT8D_INLINE { acc[r][i][j] = _mm512_dpbusd_epi32(acc[r][i][j], data(i), weight); });
        });
      };
      constexpr std::integral_constant<int, 0> first;
      constexpr int kNext = Stride * kJoined;  // columns from one register's to the next one's
      if constexpr (K == 3) {
        constexpr int kColumns = (kRegisters - 1) * kNext + K;
        __m512i data[kColumns];
        unroll<kColumns>([&](auto at) INT8D_INLINE {
          if constexpr (at < K || at >= kNext) data[at] = load_column(first, at);
        });
        unroll<kVectors>([&](auto v) INT8D_INLINE {  //
          add(v, [&](auto i) INT8D_INLINE { return data[i * kNext + v]; });
        });
      } else {
        unroll<kVectors>([&](auto v) INT8D_INLINE {
          constexpr std::integral_constant<int, (v >= K)> quad;
          constexpr int kx = quad ? 2 * (v - K) : v;
          __m512i data[kRegisters];
          unroll<kRegisters>([&](auto i) INT8D_INLINE { data[i] = load_column(quad, i * kNext + kx); });
          add(v, [&](auto i) INT8D_INLINE { return data[i]; });
        });
      }
      if (b.narrow) [[likely]] {
        const __m512 multiplier = _mm512_loadu_ps(b.multiplier + j * 16);
        unroll<Rows>([&](auto r) INT8D_INLINE {
          unroll<kRegisters>([&](auto i)
                                 INT8D_INLINE { acc[r][i][j] = avx512::round_narrow(acc[r][i][j], multiplier); });
        });
      }
    });
    unroll<Rows>([&](auto r) INT8D_INLINE {
      unroll<kRegisters>([&](auto i) INT8D_INLINE {
        const int pixels = std::min(b.width - x - i * kJoined, kJoined);
        if (pixels <= 0) return;
        uint8_t* out = b.out[r] + (x + i * kJoined) * b.out_pixel;
        if (!b.narrow) [[unlikely]] {
          int32_t sums[64];
          unroll<Quarters>([&](auto j) INT8D_INLINE { store(sums + j * 16, acc[r][i][j]); });
          finish_wide(block, sums, out, Pitch, pixels, output);
          return;
        }
        constexpr int kLast = Quarters - 2;  // the first two again, where there are no others
        store_pixels<Pitch>(out,
                            avx512::finish_lanes(acc[r][i][0], acc[r][i][1], acc[r][i][kLast], acc[r][i][kLast + 1], f),
                            pixels, b, mask);
      });
    });
  }
}

// Output rows oy .. oy + Rows - 1 of image n.
template <int K, int Stride, int Rows>
void run_rows(const DepthwiseCall& call, int n, int oy, const Output& output) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  alignas(64) uint8_t scratch[kPlane<K, Stride> * 4 * (K == 3 ? 1 : 2)];
  const uint8_t* rows[6];
  for (int row = 0; row < 6; ++row)
    rows[row] = call.in.at(n, oy * Stride - s.pad_top + std::min(row, K + Rows - 2), -s.pad_left);
  uint8_t* out = call.out.at(n, oy, 0);
  Block b;
  b.in_pixel = call.in.pixel;
  b.out_pixel = call.out.pixel;
  b.narrow = p.narrow;
  // Output pixels first .., channels c ..
  auto run = [&]<int Pitch, int Quarters>(std::integer_sequence<int, Pitch, Quarters>, int first, int c) {
    for (int row = 0; row < 6; ++row) b.in[row] = rows[row] + first * Stride * b.in_pixel + c;
    for (int row = 0; row < 2; ++row) b.out[row] = out + row * call.out.row + first * b.out_pixel + c;
    b.weight = p.weight8.data() + static_cast<size_t>(c) * 2 * column_vectors(K) * 4;
    b.bias = p.bias.data() + c;
    b.multiplier = p.multiplier.data() + c;
    b.width = std::min(segment(K, Stride) * 64 / Pitch, s.ow - first);
    b.channels = s.oc - c;
    const int columns = (b.width - 1) * Stride + K;
    if (K == 3 && Stride == 1 && Pitch < 64 && b.in_pixel == Pitch)
      gather_contiguous<K, Stride>(b, columns, scratch);
    else
      gather<K, Stride, Pitch, Quarters>(b, columns, scratch);
    compute<K, Stride, Rows, Pitch, Quarters>(b, scratch, output);
  };
  auto run_all = [&]<int Pitch, int Quarters>(std::integer_sequence<int, Pitch, Quarters> block, int begin, int end) {
    for (int first = 0; first < s.ow; first += segment(K, Stride) * 64 / Pitch)
      for (int c = begin; c < end; c += 64) run(block, first, c);
  };
  // The last channels where they leave room for other pixels.
  const int left = s.oc % 64, pitch = column_pitch(left), last = pitch < 64 ? s.oc - left : s.oc;
  run_all(std::integer_sequence<int, 64, 4>(), 0, last);
  if (pitch == 32)
    run_all(std::integer_sequence<int, 32, 4>(), last, s.oc);
  else if (left > 8)
    run_all(std::integer_sequence<int, 16, 4>(), last, s.oc);
  else
    run_all(std::integer_sequence<int, 16, 2>(), last, s.oc);
}

template <int K, int Stride>
void run(const DepthwiseCall& call) {
  const Output output = call.packed->output(call);
  const int oh = call.packed->shape.oh;
  for (int row = call.row_begin; row < call.row_end;) {
    const int n = row / oh, oy = row % oh;
    const bool two = Stride == 1 && row + 1 < call.row_end && oy + 1 < oh;
    if (two)
      run_rows<K, Stride, 2>(call, n, oy, output);
    else
      run_rows<K, Stride, 1>(call, n, oy, output);
    row += two ? 2 : 1;
  }
}

}  // namespace

void depthwise_u8s8_columns_avx512vnni(const DepthwiseCall& call) {
  const ConvShape& s = call.packed->shape;
  if (s.kh == 3)
    s.sh == 1 ? run<3, 1>(call) : run<3, 2>(call);
  else
    s.sh == 1 ? run<5, 1>(call) : run<5, 2>(call);
}

}  // namespace int8d
