// Depthwise convolution of 3x3 and 5x5, strides 1 and 2, AVX512-VNNI with VBMI. Two output rows x 16 channels.
//
// First, each input column of 16 channels becomes one vector (3x3) or two (5x5), see depthwise_pack_columns: 4 loads
// of 16 bytes and a vpermb, kept in a scratch that stays in L1. Then 4 pixels of each of the two rows are computed
// at a time, a column's vector serving both rows and up to K pixels:
// 3x3, for 128 outputs: 24 vpdpbusd, at most 6 loads, 5 column vectors, and an epilogue of about 45 instructions.
// Registers: 8 sums, 6 (3x3) or 16 (5x5) weights, 1 column; with stride 2 and in an odd last row, one output row.
#include <algorithm>
#include <utility>

#include "../common/epilogue_avx512.h"
#include "pack.h"

namespace int8d {
namespace {

constexpr int kSegment = 56;  // output columns whose input columns are in the scratch
constexpr int kPixels = 4;

// Byte 4 * channel + row from 16 * row + channel.
inline __m512i transposition() {
  alignas(64) static constexpr auto kIndices = [] {
    std::array<uint8_t, 64> indices{};
    for (size_t i = 0; i < 64; ++i) indices[i] = static_cast<uint8_t>(i % 4 * 16 + i / 4);
    return indices;
  }();
  return _mm512_load_si512(kIndices.data());
}

inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline __m256i load_pair(const uint8_t* a, const uint8_t* b) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(a)), load16(b), 1);
}

// One 16-channel block of one segment.
struct Block {
  const uint8_t* in[6];  // the rows of the windows' columns; where a row has no weight, any that can be read
  ptrdiff_t in_pixel;
  uint8_t* out[2];
  ptrdiff_t out_pixel;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  int width, channels;
  bool narrow;
};

template <int K>
void gather(const Block& b, int columns, __m512i* scratch) {
  const __m512i order = transposition();
  for (int x = 0; x < columns; ++x) {
    const ptrdiff_t at = x * b.in_pixel;
    const __m512i rows = _mm512_inserti64x4(_mm512_castsi256_si512(load_pair(b.in[0] + at, b.in[1] + at)),
                                            load_pair(b.in[2] + at, b.in[3] + at), 1);
    scratch[K == 3 ? x : 2 * x] = _mm512_permutexvar_epi8(order, rows);
    if constexpr (K == 5) {  // the last column's right neighbour may lie past the row, and has no weight
      const ptrdiff_t next = at + (x + 1 < columns ? b.in_pixel : 0);
      const __m512i pairs = _mm512_inserti64x4(_mm512_castsi256_si512(load_pair(b.in[4] + at, b.in[5] + at)),
                                               load_pair(b.in[4] + next, b.in[5] + next), 1);
      scratch[2 * x + 1] = _mm512_permutexvar_epi8(order, pairs);
    }
  }
}

[[gnu::noinline]] void finish_wide(const Block& b, const int32_t* sums, int row, int x, int pixels,
                                   const Output& output) {
  for (int i = 0; i < pixels; ++i)
    for (int c = 0; c < b.channels; ++c)
      b.out[row][(x + i) * b.out_pixel + c] = finish(sums[16 * i + c], b.multiplier[c], 0, output);
}

inline void store(uint8_t* out, __m128i bytes, int channels) {
  if (channels >= 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  else
    _mm_mask_storeu_epi8(out, static_cast<__mmask16>((1u << channels) - 1), bytes);
}

template <int K, int Stride, int Rows>
void compute(const Block& b, const __m512i* scratch, const Output& output) {
  constexpr int kVectors = column_vectors(K), kStep = K == 3 ? 1 : 2;
  __m512i weight[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v) weight[r][v] = _mm512_load_si512(b.weight + (r * kVectors + v) * 64);
  const __m512i bias = _mm512_load_si512(b.bias);
  const __m512 multiplier = _mm512_load_ps(b.multiplier);
  const avx512::Finish finish(output);
  for (int x = 0; x < b.width; x += kPixels) {
    const __m512i* column = scratch + x * Stride * kStep;
    __m512i acc[Rows][kPixels];
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < kPixels; ++i) acc[r][i] = bias;
    for (int i = 0; i < kPixels; ++i)
      for (int kx = 0; kx < K; ++kx) {
        const __m512i* at = column + (i * Stride + kx) * kStep;
        for (int r = 0; r < Rows; ++r) acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], at[0], weight[r][kx]);
        if constexpr (K == 5)
          if (kx % 2 == 0)
            for (int r = 0; r < Rows; ++r) acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], at[1], weight[r][K + kx / 2]);
      }
    const int pixels = std::min(kPixels, b.width - x);
    for (int r = 0; r < Rows; ++r) {
      if (!b.narrow) [[unlikely]] {
        alignas(64) int32_t sums[kPixels * 16];
        for (int i = 0; i < kPixels; ++i) _mm512_store_si512(sums + 16 * i, acc[r][i]);
        finish_wide(b, sums, r, x, pixels, output);
        continue;
      }
      auto q = [&](int i) { return avx512::round_narrow(acc[r][i], multiplier); };
      const __m512i bytes = avx512::finish4(q(0), q(1), q(2), q(3), finish);
      uint8_t* out = b.out[r] + x * b.out_pixel;
      store(out, _mm512_castsi512_si128(bytes), b.channels);
      if (pixels > 1) store(out + b.out_pixel, _mm512_extracti32x4_epi32(bytes, 1), b.channels);
      if (pixels > 2) store(out + 2 * b.out_pixel, _mm512_extracti32x4_epi32(bytes, 2), b.channels);
      if (pixels > 3) store(out + 3 * b.out_pixel, _mm512_extracti32x4_epi32(bytes, 3), b.channels);
    }
  }
}

// Output rows oy .. oy + Rows - 1 of image n.
template <int K, int Stride, int Rows>
void run_rows(const DepthwiseCall& call, int n, int oy, const Output& output) {
  const DepthwisePacked& p = *call.packed;
  const ConvShape& s = p.shape;
  // Whole groups of 4 pixels are computed, so columns past the last window's are touched, but not used.
  constexpr int kColumns = (kSegment - 1) * Stride + K + kPixels * Stride;
  alignas(64) __m512i scratch[kColumns * (K == 3 ? 1 : 2)];
  Block b;
  b.in_pixel = call.in.pixel;
  b.out_pixel = call.out.pixel;
  b.narrow = p.narrow;
  for (int first = 0; first < s.ow; first += kSegment) {
    b.width = std::min(kSegment, s.ow - first);
    const int columns = (b.width - 1) * Stride + K;
    for (int block = 0; block < p.blocks(); ++block) {
      const int c = block * 16;
      for (int row = 0; row < 6; ++row)
        b.in[row] =
            call.in.at(n, oy * Stride - s.pad_top + std::min(row, K + Rows - 2), first * Stride - s.pad_left) + c;
      for (int row = 0; row < Rows; ++row) b.out[row] = call.out.at(n, oy + row, first) + c;
      b.weight = p.weight8.data() + static_cast<size_t>(block) * 2 * column_vectors(K) * 64;
      b.bias = p.bias.data() + c;
      b.multiplier = p.multiplier.data() + c;
      b.channels = s.oc - c;
      gather<K>(b, columns, scratch);
      compute<K, Stride, Rows>(b, scratch, output);
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
