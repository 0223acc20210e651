// Direct convolution, AMX. Block: 2 tiles of up to 16 pixels x 32 output channels.
//
// Tiles: 4 sums, 2 of pixels, 2 of weights (common/amx.h). A step of 64 input bytes takes 4 loads of 16 rows and 4
// tdpbusd: 64 cycles, bound by tdpbusd. A tile's rows are pixels where they lie in the map, `pixel` bytes apart: no
// im2col. The sums start as the bias, one row read 16 times; they end in the scratch, and become bytes as in
// conv_avx512vnni.cpp, 2.5 cycles a vector, which the processor overlaps with the next block's products.
//
// Pixels are cut into tiles row by row, or, with stride 1, all of a map's rows in one run that takes in the halo
// between them (its results are thrown away), whichever costs fewer cycles. Where tiles do not fit, the last one laps
// over.
#include <algorithm>
#include <array>

#include "../common/amx.h"
#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "pack.h"

namespace int8d {
namespace {

using amx::kRows, amx::kTileBytes;
using avx512::Epilogue;

// How the pixels of some rows of one map are cut into tiles of `width`.
struct Cut {
  int width, tiles;
  int per_row;  // tiles of one row, or 0 for one run over all rows
  int total;    // pixels of that run
  int pitch;    // from row to row of that run

  // A product takes about 13 cycles even where it has fewer rows; tiles are taken in pairs.
  int cycles() const { return (tiles + 1) / 2 * 2 * std::max(13, width); }

  static Cut by_rows(const ConvShape& s, int rows) {
    const int per_row = (s.ow + kRows - 1) / kRows;
    return {(s.ow + per_row - 1) / per_row, rows * per_row, per_row, 0, 0};
  }
  static Cut in_one(const ConvShape& s, int rows, int pitch) {
    const int total = (rows - 1) * pitch + s.ow, tiles = (total + kRows - 1) / kRows;
    return {(total + tiles - 1) / tiles, tiles, 0, total, pitch};
  }
};

// The pixels of a block's two tiles; what nobody wants goes to a place of its own.
struct Pixels {
  const uint8_t* in[2];
  uint8_t* out[2 * kRows];
  const uint8_t* residual[2 * kRows];
};

struct Runner {
  const ConvCall& call;
  const ConvPacked& p;
  const ConvShape& s;
  const Epilogue& epilogue;
  std::array<ptrdiff_t, 256> offsets;  // of each segment, from the first tap
  int32_t* sums;                       // [2 tiles][2 vectors][16 pixels][16]
  uint8_t* nowhere;
  int n, first_row;  // of the map, and the first of its rows to be done
  Cut cut;

  void pixels(int block, Pixels& x) const {
    for (int half = 0; half < 2; ++half) {
      const int tile = std::min(2 * block + half, cut.tiles - 1);
      int row, column;
      if (cut.per_row) {
        row = tile / cut.per_row;
        column = std::min(tile % cut.per_row * cut.width, s.ow - cut.width);
      } else {
        const int first = std::min(tile * cut.width, cut.total - cut.width);
        row = first / cut.pitch;
        column = first % cut.pitch;
      }
      row += first_row;
      x.in[half] = call.in.at(n, row * s.sh - s.pad_top, column * s.sw - s.pad_left);
      uint8_t** out = x.out + half * kRows;
      const uint8_t** residual = x.residual + half * kRows;
      for (int i = 0; i < cut.width; ++i) {
        const bool wanted = column < s.ow;
        out[i] = wanted ? call.out.at(n, row, column) : nowhere;
        residual[i] = wanted ? call.residual.at(n, row, column) : nowhere;
        if (++column == cut.pitch) column = 0, ++row;
      }
    }
  }

  // The sums of a block: V vectors of 16 channels, the panel's weights at w, the second vector's w2 further on.
  template <int V>
  void multiply(const Pixels& x, const int8_t* w, size_t w2, const int32_t* bias, int in_channel) const {
    _tile_loadd(0, bias, 0);
    _tile_loadd(2, bias, 0);
    if constexpr (V == 2) {
      _tile_loadd(1, bias + 16, 0);
      _tile_loadd(3, bias + 16, 0);
    }
    const ptrdiff_t stride = s.sw * call.in.pixel;
    const ptrdiff_t* offset = offsets.data();
    for (const ConvSegment& segment : p.segments) {
      const uint8_t* a = x.in[0] + in_channel + *offset;
      const uint8_t* b = x.in[1] + in_channel + *offset++;
      for (int step = 0; step < segment.steps; step += kRows, a += amx::kRowBytes, b += amx::kRowBytes) {
        _tile_loadd(4, a, stride);
        _tile_loadd(6, w, amx::kRowBytes);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(5, b, stride);
        _tile_dpbusd(2, 5, 6);
        if constexpr (V == 2) {
          _tile_loadd(7, w + w2, amx::kRowBytes);
          _tile_dpbusd(1, 4, 7);
          _tile_dpbusd(3, 5, 7);
        }
        w += kTileBytes;
      }
    }
    constexpr int kTile = kTileBytes / 4;
    _tile_stored(0, sums, amx::kRowBytes);
    _tile_stored(2, sums + 2 * kTile, amx::kRowBytes);
    if constexpr (V == 2) {
      _tile_stored(1, sums + kTile, amx::kRowBytes);
      _tile_stored(3, sums + 3 * kTile, amx::kRowBytes);
    }
  }

  // Sums to bytes: four vectors, 2 or 4 pixels, at a time.
  template <int V, bool Summed>
  void finish(const Pixels& x, const float* multiplier, int out_channel, uint32_t mask) const {
    constexpr int kPixels = 4 / V;
    const avx512::Finish f = epilogue.finish;
    __m512 m[V];
    unroll<V>([&](auto v) INT8D_INLINE { m[v] = _mm512_loadu_ps(multiplier + 16 * v); });
    for (int half = 0; half < 2; ++half)
      for (int first = 0; first < cut.width; first += kPixels) {
        auto pixel = [&](int i) INT8D_INLINE { return std::min(first + i, cut.width - 1); };
        auto q = [&](auto i) INT8D_INLINE {
          constexpr int v = i % V;
          const int at = pixel(i / V);
          const __m512i sum = _mm512_load_si512(sums + ((half * 2 + v) * kRows + at) * 16);
          if constexpr (Summed)
            return avx512::sum_narrow(
                sum, m[v], avx512::load16(x.residual[half * kRows + at] + out_channel + 16 * v, mask >> (16 * v)),
                *epilogue.sum);
          else
            return avx512::round_narrow(sum, m[v]);
        };
        using std::integral_constant;
        const __m512i bytes = avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()),
                                              q(integral_constant<int, 2>()), q(integral_constant<int, 3>()), f);
        unroll<kPixels>([&](auto i) INT8D_INLINE {
          uint8_t* out = x.out[half * kRows + pixel(i)] + out_channel;
          if constexpr (V == 2)
            avx512::store32(out, _mm512_extracti64x4_epi64(bytes, i), mask);
          else
            avx512::store16(out, _mm512_extracti32x4_epi32(bytes, i), mask);
        });
      }
  }

  // The rare case, see ConvPacked::narrow.
  [[gnu::noinline]] void finish_wide(const Pixels& x, const float* multiplier, int out_channel, int channels) const {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < cut.width; ++i)
        for (int c = 0; c < channels; ++c) {
          const int32_t sum = sums[((half * 2 + c / 16) * kRows + i) * 16 + c % 16];
          const uint8_t residual = call.add ? x.residual[half * kRows + i][out_channel + c] : 0;
          x.out[half * kRows + i][out_channel + c] = int8d::finish(sum, multiplier[c], residual, epilogue.output);
        }
  }

  void run(const Pixels& x, int panel) const {
    const int panels_of_group = (p.channels_of_group() + 31) / 32, g = panel / panels_of_group;
    const int first = panel % panels_of_group * 32, channels = std::min(32, p.channels_of_group() - first);
    const int packed = g * p.panels_of_group() + first / 16;
    const size_t panel_bytes = static_cast<size_t>(p.steps) * 64;
    const int8_t* w = p.weight.data() + static_cast<size_t>(packed) * panel_bytes;
    const int32_t* bias = p.bias.data() + packed * 16;
    const float* multiplier = p.multiplier.data() + packed * 16;
    const int in_channel = g * (s.ic / s.groups), out_channel = g * p.channels_of_group() + first;
    if (channels > 16)
      multiply<2>(x, w, panel_bytes, bias, in_channel);
    else
      multiply<1>(x, w, 0, bias, in_channel);
    const uint32_t mask = channels == 32 ? ~0u : (1u << channels) - 1;
    if (!epilogue.narrow) [[unlikely]]
      return finish_wide(x, multiplier, out_channel, channels);
    if (channels > 16)
      epilogue.sum ? finish<2, true>(x, multiplier, out_channel, mask)
                   : finish<2, false>(x, multiplier, out_channel, mask);
    else
      epilogue.sum ? finish<1, true>(x, multiplier, out_channel, mask)
                   : finish<1, false>(x, multiplier, out_channel, mask);
  }

  // Rows first_row .. first_row + rows - 1 of map n.
  void map(int rows) {
    const int pitch = static_cast<int>(call.in.row / call.in.pixel);
    cut = Cut::by_rows(s, rows);
    if (s.sh == 1 && s.sw == 1) {
      const Cut run = Cut::in_one(s, rows, pitch);
      if (run.cycles() < cut.cycles()) cut = run;
    }
    const amx::Tiles tiles(cut.width);
    const int blocks = (cut.tiles + 1) / 2;
    // Weights that stay in L2 are read again for every block; larger ones only once, and the pixels again.
    constexpr size_t kResident = 768 * 1024;
    const size_t weights = static_cast<size_t>(call.panel_end - call.panel_begin) * p.steps * 128;
    Pixels x;
    if (weights <= kResident) {
      for (int block = 0; block < blocks; ++block) {
        pixels(block, x);
        for (int panel = call.panel_begin; panel < call.panel_end; ++panel) run(x, panel);
      }
    } else {
      for (int panel = call.panel_begin; panel < call.panel_end; ++panel)
        for (int block = 0; block < blocks; ++block) {
          pixels(block, x);
          run(x, panel);
        }
    }
  }
};

}  // namespace

void conv_u8s8_32x32_amx(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Epilogue epilogue(p.output(call), p.narrow);
  Runner r{call, p, s, epilogue, {}, reinterpret_cast<int32_t*>(call.scratch), call.scratch + 4 * kTileBytes, 0, 0, {}};
  for (size_t i = 0; i < p.segments.size(); ++i)
    r.offsets[i] = p.segments[i].ky * s.dh * call.in.row + p.segments[i].kx * s.dw * call.in.pixel;
  for (int row = call.row_begin; row < call.row_end;) {
    r.n = row / s.oh;
    r.first_row = row % s.oh;
    const int rows = std::min(call.row_end - row, s.oh - r.first_row);
    r.map(rows);
    row += rows;
  }
}

}  // namespace int8d
