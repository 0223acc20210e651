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
#include <utility>

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

  bool listed(const ConvShape& s) const { return !per_row && pitch != s.ow; }

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

// Where a block's two tiles lie: their first pixels, and, where a tile takes in a halo, every pixel of theirs, the
// second tile's behind the first one's; what nobody wants goes to a place of its own. Addresses that are computed,
// not loaded, let loads pass the stores before them.
struct Pixels {
  const uint8_t* in[2];
  uint8_t *out[2], *residual[2];
  uint8_t *out_of[2 * kRows], *residual_of[2 * kRows];
};

// Up to 32 output channels.
struct Panel {
  int channels, in_channel, out_channel;
  const int8_t* weight;  // of the first 16; those of the others lie behind
  const int32_t* bias;
  const float* multiplier;

  int vectors() const { return channels > 16 ? 2 : 1; }
  uint32_t mask() const { return channels == 32 ? ~0u : (1u << channels) - 1; }
};

constexpr int kPixels = 2 * kRows;         // of a block
constexpr int kBuffer = 2 * kPixels * 16;  // sums of a block: [2 vectors][pixels][16]

// What is left to be done of a block: its sums, as they lie in the buffer, become bytes, four vectors at a time.
// Listed: whether the pixels are.
template <int V, bool Summed, bool Listed>
struct Finisher {
  const Epilogue& epilogue;
  const Pixels& x;
  const Panel& to;
  const int32_t* sums;
  int width, pixels;  // of a tile, of both
  ptrdiff_t out_stride, residual_stride;
  int pixel = 0;
  uint8_t* out = x.out[0] + to.out_channel;
  const uint8_t* residual = Summed ? x.residual[0] + to.out_channel : nullptr;
  avx512::Finish f = epilogue.finish;
  uint32_t mask = to.mask();
  __m512 m[2] = {_mm512_loadu_ps(to.multiplier), _mm512_loadu_ps(to.multiplier + 16 * (V - 1))};

  bool left() const { return pixel < pixels; }

  // 4 / V pixels; behind the last one, that one again.
  INT8D_INLINE inline void step() {
    constexpr int kStep = 4 / V;
    const int32_t* from[kStep];
    uint8_t* outs[kStep];
    const uint8_t* residuals[kStep] = {};
    unroll<kStep>([&](auto i) INT8D_INLINE {
      if constexpr (V == 1 && i > 0)
        if (pixel == pixels) {
          from[i] = from[i - 1];
          outs[i] = outs[i - 1];
          residuals[i] = residuals[i - 1];
          return;
        }
      from[i] = sums + pixel * 16;
      outs[i] = Listed ? x.out_of[pixel] + to.out_channel : out;
      if constexpr (Summed) residuals[i] = Listed ? x.residual_of[pixel] + to.out_channel : residual;
      const bool turn = ++pixel == width;
      out = turn ? x.out[1] + to.out_channel : out + out_stride;
      if constexpr (Summed) residual = turn ? x.residual[1] + to.out_channel : residual + residual_stride;
    });
    auto q = [&](auto i) INT8D_INLINE {
      constexpr int v = i % V;
      const __m512i sum = _mm512_load_si512(from[i / V] + v * kPixels * 16);
      if constexpr (Summed)
        return avx512::sum_narrow(sum, m[v], avx512::load16(residuals[i / V] + 16 * v, mask >> (16 * v)),
                                  *epilogue.sum);
      else
        return avx512::round_narrow(sum, m[v]);
    };
    using std::integral_constant;
    const __m512i bytes = avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()),
                                          q(integral_constant<int, 2>()), q(integral_constant<int, 3>()), f);
    unroll<kStep>([&](auto i) INT8D_INLINE {
      if constexpr (V == 2)
        avx512::store32(outs[i], _mm512_extracti64x4_epi64(bytes, i), mask);
      else
        avx512::store16(outs[i], _mm512_extracti32x4_epi32(bytes, i), mask);
    });
  }
};

struct Runner {
  const ConvCall& call;
  const ConvPacked& p;
  const ConvShape& s;
  const Epilogue& epilogue;
  std::array<ptrdiff_t, 256> offsets;  // of each segment, from the first tap
  int32_t* buffers;                    // two
  uint8_t* nowhere;
  int n = 0, first_row = 0;  // of the map, and the first of its rows to be done
  Cut cut{};
  int in_channels = s.ic / s.groups;
  int between = 1;                           // steps of the finisher between two instructions on tiles
  int32_t *sums = buffers, *done = nullptr;  // of the block at work, and of the pending one
  const Pixels* pending = nullptr;
  Panel pending_panel{};

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
      x.out[half] = call.out.at(n, row, column);
      x.residual[half] = call.residual.at(n, row, column);
      if (!cut.listed(s)) continue;
      list(call.out, row, column, x.out_of + half * cut.width);
      if (call.add) list(call.residual, row, column, x.residual_of + half * cut.width);
    }
  }

  // The addresses of a tile's pixels, from the given one on.
  void list(const View& view, int row, int column, uint8_t** to) const {
    uint8_t** const end = to + cut.width;
    for (; to < end; column = 0, ++row) {
      uint8_t* at = view.at(n, row, column);
      for (uint8_t** stop = std::min(end, to + std::max(0, s.ow - column)); to < stop; at += view.pixel) *to++ = at;
      for (uint8_t** stop = std::min(end, to + (cut.pitch - std::max(column, s.ow))); to < stop;) *to++ = nowhere;
    }
  }

  // The sums of a block, V vectors of 16 channels; between the products, the pending block is finished.
  template <int V, bool Summed, bool Listed>
  void multiply(const Pixels& x, const Panel& to) {
    const bool busy = pending != nullptr;
    Finisher<V, Summed, Listed> finisher = finish_of<V, Summed, Listed>(busy ? *pending : x, busy ? pending_panel : to);
    if (!busy) finisher.pixel = finisher.pixels;
    const int most = between;
    auto finish = [&]() INT8D_INLINE {
      for (int i = 0; i < most && finisher.left(); ++i) finisher.step();
    };
    _tile_loadd(0, to.bias, 0);
    _tile_loadd(2, to.bias, 0);
    if constexpr (V == 2) {
      _tile_loadd(1, to.bias + 16, 0);
      _tile_loadd(3, to.bias + 16, 0);
    }
    const int8_t *w = to.weight, *w2 = w + static_cast<size_t>(p.steps) * 64;
    const ptrdiff_t stride = s.sw * call.in.pixel;
    const ptrdiff_t* offset = offsets.data();
    for (const ConvSegment& segment : p.segments) {
      const uint8_t* a = x.in[0] + to.in_channel + *offset;
      const uint8_t* b = x.in[1] + to.in_channel + *offset++;
      for (int step = 0; step < segment.steps; step += kRows) {
        _tile_loadd(4, a, stride);
        _tile_loadd(6, w, amx::kRowBytes);
        _tile_dpbusd(0, 4, 6);
        finish();
        _tile_loadd(5, b, stride);
        _tile_dpbusd(2, 5, 6);
        finish();
        if constexpr (V == 2) {
          _tile_loadd(7, w2, amx::kRowBytes);
          _tile_dpbusd(1, 4, 7);
          finish();
          _tile_dpbusd(3, 5, 7);
          finish();
        }
        a += amx::kRowBytes;
        b += amx::kRowBytes;
        w += kTileBytes;
        w2 += kTileBytes;
      }
    }
    // The second tile's pixels follow the first one's.
    _tile_stored(0, sums, amx::kRowBytes);
    finish();
    _tile_stored(2, sums + cut.width * 16, amx::kRowBytes);
    finish();
    if constexpr (V == 2) {
      _tile_stored(1, sums + kPixels * 16, amx::kRowBytes);
      finish();
      _tile_stored(3, sums + (kPixels + cut.width) * 16, amx::kRowBytes);
    }
    while (finisher.left()) finisher.step();
    pending = &x;
    pending_panel = to;
    done = sums;
    sums = sums == buffers ? buffers + kBuffer : buffers;
  }

  // f(panel) for each of the call's panels.
  template <typename F>
  void each_panel(F f) const {
    const int channels = p.channels_of_group(), of_group = (channels + 31) / 32;
    int group = call.panel_begin / of_group, first = call.panel_begin % of_group * 32;
    for (int index = call.panel_begin; index < call.panel_end; ++index) {
      const int packed = group * ((channels + 15) / 16) + first / 16;
      f(Panel{std::min(32, channels - first), in_channels * group, channels * group + first,
              p.weight.data() + static_cast<size_t>(packed) * p.steps * 64, p.bias.data() + packed * 16,
              p.multiplier.data() + packed * 16});
      first += 32;
      if (first >= channels) first = 0, ++group;
    }
  }

  // f.operator()<V, Summed, Listed>() with what holds of the call and of a panel.
  template <typename F>
  void with_form(const Panel& to, F f) {
    const bool summed = epilogue.sum.has_value(), listed = cut.listed(s);
    auto choose = [&]<int V>(std::integral_constant<int, V>) {
      if (listed)
        summed ? f.template operator()<V, true, true>() : f.template operator()<V, false, true>();
      else
        summed ? f.template operator()<V, true, false>() : f.template operator()<V, false, false>();
    };
    to.vectors() == 2 ? choose(std::integral_constant<int, 2>()) : choose(std::integral_constant<int, 1>());
  }

  void run(const Pixels& x, const Panel& to) {
    if (pending && (!epilogue.narrow || pending_panel.vectors() != to.vectors())) flush();
    with_form(to, [&]<int V, bool Summed, bool Listed>() { multiply<V, Summed, Listed>(x, to); });
  }

  template <int V, bool Summed, bool Listed>
  Finisher<V, Summed, Listed> finish_of(const Pixels& x, const Panel& to) const {
    return {epilogue, x, to, done, cut.width, 2 * cut.width, call.out.pixel, call.residual.pixel};
  }

  // Finishes the pending block.
  void flush() {
    if (!pending) return;
    if (!epilogue.narrow)
      finish_wide();
    else
      with_form(pending_panel, [&]<int V, bool Summed, bool Listed>() {
        for (auto f = finish_of<V, Summed, Listed>(*pending, pending_panel); f.left();) f.step();
      });
    pending = nullptr;
  }

  // The rare case, see ConvPacked::narrow.
  [[gnu::noinline]] void finish_wide() const {
    const Panel& to = pending_panel;
    const Pixels& x = *pending;
    const bool listed = cut.listed(s);
    for (int i = 0; i < 2 * cut.width; ++i) {
      const int half = i / cut.width, column = i % cut.width;
      uint8_t* out = listed ? x.out_of[i] : x.out[half] + column * call.out.pixel;
      const uint8_t* residual = listed ? x.residual_of[i] : x.residual[half] + column * call.residual.pixel;
      for (int c = 0; c < to.channels; ++c)
        out[to.out_channel + c] = int8d::finish(done[(c / 16 * kPixels + i) * 16 + c % 16], to.multiplier[c],
                                                call.add ? residual[to.out_channel + c] : 0, epilogue.output);
    }
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
    // Of the instructions on tiles, 4 a step of the products and 4 that store.
    const int instructions = 4 * p.steps / kRows + 4;
    between = (cut.width + instructions - 1) / instructions;
    const int blocks = (cut.tiles + 1) / 2;
    // Weights that stay in L2 are read again for every block; larger ones only once, and the pixels again.
    constexpr size_t kResident = 768 * 1024;
    const size_t weights = static_cast<size_t>(call.panel_end - call.panel_begin) * p.steps * 128;
    Pixels x[2];
    if (weights <= kResident) {
      for (int block = 0; block < blocks; ++block) {
        pixels(block, x[block % 2]);
        each_panel([&](const Panel& to) INT8D_INLINE { run(x[block % 2], to); });
      }
    } else {
      int parity = 0;
      each_panel([&](const Panel& to) INT8D_INLINE {
        for (int block = 0; block < blocks; ++block, parity ^= 1) {
          pixels(block, x[parity]);
          run(x[parity], to);
        }
      });
    }
    flush();
  }
};

}  // namespace

void conv_u8s8_32x32_amx(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Epilogue epilogue(p.output(call), p.narrow);
  Runner r{call, p, s, epilogue, {}, reinterpret_cast<int32_t*>(call.scratch), call.scratch + 8 * kTileBytes};
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
