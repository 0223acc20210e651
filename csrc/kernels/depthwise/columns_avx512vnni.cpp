// Depthwise convolution of 3x3 and 5x5, strides 1 and 2, AVX512-VNNI. Two output rows x 2 pixels x 64 channels; the
// last channels in blocks of 32 and 16, in narrower registers. Where 3x3 has 16 or 32 channels in all, a register holds
// 4 or 2 pixels instead (joined_pixels).
//
// First, the input columns of a segment are interleaved (depthwise_pack_columns) into a scratch that stays in L1: 4
// loads and 8 unpacks a column of 64 channels, 6 rows: 6 and 14. It has a plane for each quarter of the channels, so
// that 64 bytes at any pixel are an operand. Then two pixels of two rows are computed at a time, one plane after the
// other, so that 3x3 takes, for 256 outputs, 48 vpdpbusd, 48 instructions to requantize and 40 loads; packing restores
// the channels' order. Registers: 16 sums, up to 4 columns; weights come from memory.
// With stride 2, and in an odd last row, one output row is computed.
#include <algorithm>

#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "pack.h"

namespace int8d {
namespace {

// The instructions of one register width, W channels.
template <int W>
struct Lanes;

#define INT8D_LANES(W, I, F, p, si, mask_type)                                                      \
  template <>                                                                                       \
  struct Lanes<W> {                                                                                 \
    using Int = I;                                                                                  \
    static Int load(const void* x) { return p##_loadu_##si(static_cast<const I*>(x)); }             \
    static void store(void* x, Int v) { p##_storeu_##si(static_cast<I*>(x), v); }                   \
    static void store(uint8_t* x, Int v, int count) {                                               \
      p##_mask_storeu_epi8(x, static_cast<mask_type>((1ull << count) - 1), v);                      \
    }                                                                                               \
    static Int low8(Int a, Int b) { return p##_unpacklo_epi8(a, b); }                               \
    static Int high8(Int a, Int b) { return p##_unpackhi_epi8(a, b); }                              \
    static Int low16(Int a, Int b) { return p##_unpacklo_epi16(a, b); }                             \
    static Int high16(Int a, Int b) { return p##_unpackhi_epi16(a, b); }                            \
    static Int dot(Int acc, Int x, Int w) { return p##_dpbusd_epi32(acc, x, w); }                   \
    static F load_float(const float* x) { return p##_loadu_ps(x); }                                 \
    static Int round(Int acc, F m) { return p##_cvtps_epi32(p##_mul_ps(p##_cvtepi32_ps(acc), m)); } \
    static Int words(Int a, Int b, Int zp) { return p##_adds_epi16(p##_packs_epi32(a, b), zp); }    \
    static Int bytes(Int a, Int b, Int lo, Int hi) {                                                \
      return p##_min_epu8(p##_max_epu8(p##_packus_epi16(a, b), lo), hi);                            \
    }                                                                                               \
    static Int all8(int x) { return p##_set1_epi8(static_cast<char>(x)); }                          \
    static Int all16(int x) { return p##_set1_epi16(static_cast<short>(x)); }                       \
  };
INT8D_LANES(64, __m512i, __m512, _mm512, si512, __mmask64)
INT8D_LANES(32, __m256i, __m256, _mm256, si256, __mmask32)
INT8D_LANES(16, __m128i, __m128, _mm, si128, __mmask16)
#undef INT8D_LANES

template <int W>
INT8D_INLINE inline typename Lanes<W>::Int look_up(typename Lanes<W>::Int q, const uint8_t* table) {
  if constexpr (W == 64) return avx512::lookup(q, table);
  if constexpr (W == 32) return _mm512_castsi512_si256(avx512::lookup(_mm512_castsi256_si512(q), table));
  if constexpr (W == 16) return _mm512_castsi512_si128(avx512::lookup(_mm512_castsi128_si512(q), table));
}

// One block of one segment of one or two rows.
struct Block {
  const uint8_t* in[6];  // the rows of the windows' columns; where a row has no weight, any that can be read
  ptrdiff_t in_pixel;
  uint8_t* out[2];
  ptrdiff_t out_pixel;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  int width, channels;  // blocks in a row; channels, or, of joined pixels, bytes of the row
  bool narrow;
};

// 5x5 has a second quadruple of vectors a column.
constexpr int quads(int k) { return k == 3 ? 1 : 2; }

// Interleaves the columns into planes of Plane bytes.
template <int W, int K, int Plane>
void gather(const Block& b, int columns, uint8_t* scratch) {
  using L = Lanes<W>;
  for (int x = 0; x < columns; ++x, scratch += W) {
    const ptrdiff_t at = x * b.in_pixel;
    const auto r0 = L::load(b.in[0] + at), r1 = L::load(b.in[1] + at), r2 = L::load(b.in[2] + at),
               r3 = L::load(b.in[3] + at);
    const auto low01 = L::low8(r0, r1), high01 = L::high8(r0, r1), low23 = L::low8(r2, r3), high23 = L::high8(r2, r3);
    L::store(scratch, L::low16(low01, low23));
    L::store(scratch + Plane, L::high16(low01, low23));
    L::store(scratch + 2 * Plane, L::low16(high01, high23));
    L::store(scratch + 3 * Plane, L::high16(high01, high23));
    if constexpr (K == 5) {  // the last column's right neighbour may lie past the row, and has no weight
      const ptrdiff_t next = at + (x + 1 < columns ? b.in_pixel : 0);
      const auto r4 = L::load(b.in[4] + at), r5 = L::load(b.in[5] + at), n4 = L::load(b.in[4] + next),
                 n5 = L::load(b.in[5] + next);
      const auto low = L::low8(r4, r5), high = L::high8(r4, r5), next_low = L::low8(n4, n5),
                 next_high = L::high8(n4, n5);
      L::store(scratch + 4 * Plane, L::low16(low, next_low));
      L::store(scratch + 5 * Plane, L::high16(low, next_low));
      L::store(scratch + 6 * Plane, L::low16(high, next_high));
      L::store(scratch + 7 * Plane, L::high16(high, next_high));
    }
  }
}

// The rare case, see ConvPacked::narrow. sums: of one pixel, slot by slot.
[[gnu::noinline]] void finish_wide(const Block& b, const int32_t* sums, uint8_t* out, int block, int channels,
                                   const Output& output) {
  for (int c = 0; c < std::min(block, channels); ++c) {
    const int slot = block_slot(c, block);
    out[c] = finish(sums[slot], b.multiplier[slot], 0, output);
  }
}

// Column pixels lie Pitch bytes apart in the planes: W, or less where a register holds several.
template <int W, int K, int Stride, int Rows, int Plane, int Pitch = W>
void compute(const Block& b, const uint8_t* scratch, const Output& output) {
  using L = Lanes<W>;
  constexpr int kVectors = column_vectors(K), kPixels = 2;
  const auto zp = L::all16(output.zp), lo = L::all8(output.lo), hi = L::all8(output.hi);
  for (int x = 0; x < b.width; x += kPixels) {
    const uint8_t* column = scratch + x * Stride * W;
    typename L::Int acc[Rows][kPixels][4];
    unroll<4>([&](auto j) INT8D_INLINE {
      const auto bias = L::load(b.bias + j * (W / 4));
      unroll<Rows>([&](auto r) INT8D_INLINE {  //
        unroll<kPixels>([&](auto i) INT8D_INLINE { acc[r][i][j] = bias; });
      });
      auto load = [&](auto quad, int pixel, int kx) INT8D_INLINE {
        auto data = L::load(column + (4 * quad + j) * Plane + pixel * Stride * W + kx * Pitch);
        asm("" : "+v"(data));
        return data;
      };
      auto add = [&](auto v, const auto& data) INT8D_INLINE {
        unroll<Rows>([&](auto r) INT8D_INLINE {
          // Every column and weight is loaded once for all that it serves, whatever the compiler thinks.
          auto weight = L::load(b.weight + ((r * kVectors + v) * 4 + j) * W);
          asm("" : "+v"(weight));
          unroll<kPixels>([&](auto i) INT8D_INLINE { acc[r][i][j] = L::dot(acc[r][i][j], data(i), weight); });
        });
      };
      constexpr std::integral_constant<int, 0> first;
      if constexpr (K == 3) {
        constexpr int kNext = Stride * W / Pitch, kColumns = (kPixels - 1) * kNext + K;
        typename L::Int data[kColumns];
        unroll<kColumns>([&](auto at) INT8D_INLINE {
          if constexpr (at < K || at >= kNext) data[at] = load(first, 0, at);
        });
        unroll<kVectors>([&](auto v) INT8D_INLINE {  //
          add(v, [&](auto i) INT8D_INLINE { return data[i * kNext + v]; });
        });
      } else {
        unroll<kVectors>([&](auto v) INT8D_INLINE {
          constexpr std::integral_constant<int, (v >= K)> quad;
          constexpr int kx = quad ? 2 * (v - K) : v;
          typename L::Int data[kPixels];
          unroll<kPixels>([&](auto i) INT8D_INLINE { data[i] = load(quad, i, kx); });
          add(v, [&](auto i) INT8D_INLINE { return data[i]; });
        });
      }
      if (b.narrow) {
        const auto multiplier = L::load_float(b.multiplier + j * (W / 4));
        unroll<Rows>([&](auto r) INT8D_INLINE {
          unroll<kPixels>([&](auto i) INT8D_INLINE { acc[r][i][j] = L::round(acc[r][i][j], multiplier); });
        });
      }
    });
    const int pixels = std::min(kPixels, b.width - x);
    unroll<Rows>([&](auto r) INT8D_INLINE {
      unroll<kPixels>([&](auto i) INT8D_INLINE {
        if (i >= pixels) return;
        uint8_t* out = b.out[r] + (x + i) * b.out_pixel;
        const int channels = Pitch < W ? b.channels - (x + i) * W : b.channels;
        if (!b.narrow) [[unlikely]] {
          int32_t sums[W];
          unroll<4>([&](auto j) INT8D_INLINE { L::store(sums + j * (W / 4), acc[r][i][j]); });
          finish_wide(b, sums, out, W, channels, output);
          return;
        }
        auto q = L::bytes(L::words(acc[r][i][0], acc[r][i][1], zp), L::words(acc[r][i][2], acc[r][i][3], zp), lo, hi);
        if (output.table) q = look_up<W>(q, output.table);
        if (channels >= W)
          L::store(out, q);
        else
          L::store(out, q, channels);
      });
    });
  }
}

// Output columns whose input columns are in the scratch: 8 to 16 KB.
constexpr int segment(int k, int stride) { return k == 5 && stride == 2 ? 14 : 28; }

// Output rows oy .. oy + Rows - 1 of image n.
template <int K, int Stride, int Rows>
void run_rows(const DepthwiseCall& call, int n, int oy, const Output& output) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  constexpr int kSegment = segment(K, Stride);
  // Pixels are computed in pairs, so columns past the last window's are touched, but not used.
  constexpr int kColumns = (kSegment + 1) * Stride + K, kPlane = kColumns * 64;
  alignas(64) uint8_t scratch[kPlane * 4 * quads(K)];
  const int joined = K == 3 && Stride == 1 ? joined_pixels(s) : 1, length = kSegment * joined;
  Block b;
  b.in_pixel = call.in.pixel;
  b.out_pixel = call.out.pixel;
  b.narrow = p.narrow;
  for (int first = 0; first < s.ow; first += length) {
    b.width = std::min(length, s.ow - first);
    const int columns = (b.width - 1) * Stride + K;
    const uint8_t* rows[6];
    for (int row = 0; row < 6; ++row)
      rows[row] = call.in.at(n, oy * Stride - s.pad_top + std::min(row, K + Rows - 2), first * Stride - s.pad_left);
    uint8_t* out = call.out.at(n, oy, first);
    if constexpr (K == 3 && Stride == 1)
      if (joined > 1) {
        std::copy(rows, rows + 6, b.in);
        for (int row = 0; row < 2; ++row) b.out[row] = out + row * call.out.row;
        b.weight = p.weight8.data();
        b.bias = p.bias.data();
        b.multiplier = p.multiplier.data();
        b.in_pixel = b.out_pixel = 64;
        b.channels = b.width * s.oc;
        b.width = (b.channels + 63) / 64;
        gather<64, K, kPlane>(b, (columns * s.oc + 63) / 64, scratch);
        s.oc == 32 ? compute<64, K, Stride, Rows, kPlane, 32>(b, scratch, output)
                   : compute<64, K, Stride, Rows, kPlane, 16>(b, scratch, output);
        continue;
      }
    for (int c = 0, block; c < s.oc; c += block) {
      block = column_block(s.oc - c);
      for (int row = 0; row < 6; ++row) b.in[row] = rows[row] + c;
      for (int row = 0; row < 2; ++row) b.out[row] = out + row * call.out.row + c;
      b.weight = p.weight8.data() + static_cast<size_t>(c) * 2 * column_vectors(K) * 4;
      b.bias = p.bias.data() + c;
      b.multiplier = p.multiplier.data() + c;
      b.channels = s.oc - c;
      auto run = [&]<int W>(std::integral_constant<int, W>) {
        gather<W, K, kPlane>(b, columns, scratch);
        compute<W, K, Stride, Rows, kPlane>(b, scratch, output);
      };
      if (block == 64)
        run(std::integral_constant<int, 64>());
      else if (block == 32)
        run(std::integral_constant<int, 32>());
      else
        run(std::integral_constant<int, 16>());
    }
  }
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
