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

  // A product takes about 13 cycles even where it has fewer rows; tiles are taken in pairs. A third more for lists.
  int cycles(bool listed) const { return (tiles + 1) / 2 * 2 * std::max(13, width) * (listed ? 4 : 3); }

  static Cut by_rows(const ConvShape& s, int rows) {
    const int per_row = (s.ow + kRows - 1) / kRows;
    return {even((s.ow + per_row - 1) / per_row, s.ow), rows * per_row, per_row, 0, 0};
  }
  static Cut in_one(const ConvShape& s, int rows, int pitch) {
    const int total = (rows - 1) * pitch + s.ow, tiles = (total + kRows - 1) / kRows;
    return {even((total + tiles - 1) / tiles, total), tiles, 0, total, pitch};
  }
  static int even(int width, int most) { return std::min((width + 1) / 2 * 2, most); }
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

constexpr int kBuffer = kAmxSums / 2;  // sums of a block: [2 vectors][pixels][16]

// Finishers turn a block's sums, as they lie in the buffer, to bytes, step by step. One lives for many blocks: what is
// the same for all it keeps in registers. That matters: while a block's sums are on their way to memory, a load from
// any address that agrees with one of theirs in 12 bits has to wait, and they fill 4 KB.

// For tiles of pixels that lie side by side in the outputs, a multiple of 4 / V of them; Whole: all 16 V channels
// exist.
template <int V, bool Summed, bool Whole>
struct PlainFinisher {
  static constexpr int kVectors = V, kStep = 4 / V;  // pixels of a step
  const avx512::Finish f;
  const avx512::Sum sum;
  const ptrdiff_t stride;  // of out and of residual: both have as many channels
  const int width;         // of a tile
  const int32_t* sums = nullptr;
  uint8_t *out = nullptr, *next_out = nullptr;  // of this tile, of the next one
  const uint8_t *residual = nullptr, *next_residual = nullptr;
  int left = 0, next_left = 0;  // steps
  uint32_t mask = ~0u;
  __m512 m[V];

  PlainFinisher(const ConvCall& call, const Epilogue& e, int tile_width)
      : f(e.finish), sum(e.sum.value_or(avx512::Sum(e.output, {}))), stride(call.out.pixel), width(tile_width) {}

  INT8D_INLINE inline void start(const Pixels& x, const Panel& to, const int32_t* from) {
    sums = from;
    out = x.out[0] + to.out_channel;
    next_out = x.out[1] + to.out_channel;
    if constexpr (Summed) {
      residual = x.residual[0] + to.out_channel;
      next_residual = x.residual[1] + to.out_channel;
    }
    left = next_left = width / kStep;
    if constexpr (!Whole) mask = to.mask();
    unroll<V>([&](auto v) INT8D_INLINE { m[v] = _mm512_loadu_ps(to.multiplier + 16 * v); });
  }
  INT8D_INLINE inline bool more() const { return left > 0; }

  INT8D_INLINE inline void step() {
    auto q = [&](auto i) INT8D_INLINE {
      constexpr int p = i / V, v = i % V;
      const __m512i acc = _mm512_load_si512(sums + (v * kAmxPixels + p) * 16);
      if constexpr (Summed) {
        const uint8_t* at = residual + p * stride + 16 * v;
        return avx512::sum_narrow(acc, m[v], avx512::load16(at, Whole ? ~0u : mask >> (16 * v)), sum);
      } else {
        return avx512::round_narrow(acc, m[v]);
      }
    };
    using std::integral_constant;
    const __m512i bytes = avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()),
                                          q(integral_constant<int, 2>()), q(integral_constant<int, 3>()), f);
    unroll<kStep>([&](auto p) INT8D_INLINE {
      if constexpr (V == 2)
        avx512::store32(out + p * stride, _mm512_extracti64x4_epi64(bytes, p), Whole ? ~0u : mask);
      else
        avx512::store16(out + p * stride, _mm512_extracti32x4_epi32(bytes, p), Whole ? ~0u : mask);
    });
    sums += kStep * 16;
    out += kStep * stride;
    if constexpr (Summed) residual += kStep * stride;
    if (--left == 0) {
      left = next_left;
      next_left = 0;
      out = next_out;
      if constexpr (Summed) residual = next_residual;
    }
  }
};

// For any tiles and panels, pixel by listed pixel.
template <int V, bool Summed>
struct ListFinisher {
  static constexpr int kVectors = V;
  const Epilogue& epilogue;
  const int pixels;
  const Pixels* x = nullptr;
  int pixel = pixels, channel = 0;
  const int32_t* sums = nullptr;
  uint32_t mask = 0;
  __m512 m[2];

  ListFinisher(const ConvCall&, const Epilogue& e, int width) : epilogue(e), pixels(2 * width) {}

  void start(const Pixels& block, const Panel& to, const int32_t* from) {
    x = &block;
    channel = to.out_channel;
    sums = from;
    mask = to.mask();
    pixel = 0;
    for (int v = 0; v < V; ++v) m[v] = _mm512_loadu_ps(to.multiplier + 16 * v);
  }
  bool more() const { return pixel < pixels; }

  // 4 / V pixels; behind the last one, that one again.
  INT8D_INLINE inline void step() {
    constexpr int kStep = 4 / V;
    auto at = [&](int i) INT8D_INLINE { return std::min(pixel + i, pixels - 1); };
    auto q = [&](auto i) INT8D_INLINE {
      constexpr int v = i % V;
      const __m512i acc = _mm512_load_si512(sums + (v * kAmxPixels + at(i / V)) * 16);
      if constexpr (Summed) {
        const uint8_t* residual = x->residual_of[at(i / V)] + channel + 16 * v;
        return avx512::sum_narrow(acc, m[v], avx512::load16(residual, mask >> (16 * v)), *epilogue.sum);
      } else {
        return avx512::round_narrow(acc, m[v]);
      }
    };
    using std::integral_constant;
    const __m512i bytes =
        avx512::finish4(q(integral_constant<int, 0>()), q(integral_constant<int, 1>()), q(integral_constant<int, 2>()),
                        q(integral_constant<int, 3>()), epilogue.finish);
    unroll<kStep>([&](auto i) INT8D_INLINE {
      uint8_t* out = x->out_of[at(i)] + channel;
      if constexpr (V == 2)
        avx512::store32(out, _mm512_extracti64x4_epi64(bytes, i), mask);
      else
        avx512::store16(out, _mm512_extracti32x4_epi32(bytes, i), mask);
    });
    pixel += kStep;
  }
};

// The rare case, see ConvPacked::narrow: element by element.
template <int V>
struct WideFinisher {
  static constexpr int kVectors = V;
  const Output& output;
  const int pixels;
  const Pixels* x = nullptr;
  Panel to{};
  const int32_t* sums = nullptr;
  int pixel = pixels;

  WideFinisher(const ConvCall&, const Epilogue& e, int width) : output(e.output), pixels(2 * width) {}

  void start(const Pixels& block, const Panel& panel, const int32_t* from) {
    x = &block;
    to = panel;
    sums = from;
    pixel = 0;
  }
  bool more() const { return pixel < pixels; }

  [[gnu::noinline]] void step() {
    for (int c = 0; c < to.channels; ++c)
      x->out_of[pixel][to.out_channel + c] = finish(sums[(c / 16 * kAmxPixels + pixel) * 16 + c % 16], to.multiplier[c],
                                                    output.add ? x->residual_of[pixel][to.out_channel + c] : 0, output);
    ++pixel;
  }
};

// Has memory fetched to L2, evenly over `steps` steps.
struct Fetcher {
  const uint8_t *at, *end;
  int lines;  // of a step
  // No more than L3 gives in the time of a step.
  static constexpr size_t kMost = 16;

  Fetcher(std::span<const uint8_t> ahead, size_t steps)
      : at(ahead.data()),
        end(at + ahead.size()),
        lines(static_cast<int>(std::min(kMost, (ahead.size() / 64 + steps - 1) / steps))) {}
  INT8D_INLINE inline void step() {
    if (at >= end) return;
    for (int i = 0; i < lines; ++i, at += 64) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
  }
};

struct Runner {
  const ConvCall& call;
  const ConvPacked& p;
  const ConvShape& s;
  const Epilogue& epilogue;
  const ptrdiff_t* offsets;  // of each run of 64 bytes, from the first tap
  int32_t* buffers;          // two
  uint8_t* nowhere;
  int runs = p.steps / kRows, in_channels = s.ic / s.groups, channels = s.oc / s.groups;
  int n = 0, first_row = 0;  // of the map, and the first of its rows to be done
  Cut cut{};
  bool plain = false;  // a tile's pixels lie side by side in the outputs, and are even in number

  void pixels(int block, bool listed, Pixels& x) const {
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
      if (!listed) continue;
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

  // Blocks by panels first .. last - 1, counted in 32 channels, of one group; all of the finisher's kind. Either a
  // block meets all panels, whose weights are read again for every block, or a panel meets all blocks. The latter for
  // weights that do not stay in L2, and for windows, whose pixels L1 gives several times, where a panel stays in L1,
  // but not all.
  template <typename Finisher>
  void sweep(int group, int first, int last, bool listed) {
    constexpr size_t kResident = 768 * 1024, kPanel = 40 * 1024, kSmall = 24 * 1024;
    Finisher finisher(call, epilogue, cut.width);
    const int blocks = (cut.tiles + 1) / 2;
    // Steps of the finisher between two instructions on tiles: 4 a run of the products, and 4 that store.
    const int between = (cut.width + 4 * runs + 3) / (4 * runs + 4);
    Fetcher fetcher(call.ahead, static_cast<size_t>(blocks) * static_cast<size_t>(last - first) * runs);
    Pixels x[2];  // in turns: the finisher may still need the last one
    int turn = 0;
    int32_t *sums = buffers, *other = buffers + kBuffer;
    auto run = [&](const Pixels& at, const Panel& to) INT8D_INLINE {
      multiply<Finisher::kVectors>(at, to, sums, finisher, between, fetcher);
      finisher.start(at, to, sums);
      std::swap(sums, other);
    };
    const size_t panel_bytes = static_cast<size_t>(p.steps) * 128,
                 bytes = panel_bytes * static_cast<size_t>(last - first);
    const bool stays = s.kh * s.kw > 1 && panel_bytes <= kPanel && bytes > kSmall;
    if (bytes <= kResident && !stays) {
      for (int block = 0; block < blocks; ++block) {
        Pixels& at = x[turn ^= 1];
        pixels(block, listed, at);
        for (int panel = first; panel < last; ++panel) run(at, panel_of(group, panel));
      }
    } else {
      for (int panel = first; panel < last; ++panel)
        for (int block = 0; block < blocks; ++block) {
          Pixels& at = x[turn ^= 1];
          pixels(block, listed, at);
          run(at, panel_of(group, panel));
        }
    }
    while (finisher.more()) finisher.step();
  }

  Panel panel_of(int group, int index) const {
    const int first = index * 32, packed = group * ((channels + 15) / 16) + first / 16;
    return {std::min(32, channels - first), in_channels * group,
            channels * group + first,       p.weight.data() + static_cast<size_t>(packed) * p.steps * 64,
            p.bias.data() + packed * 16,    p.multiplier.data() + packed * 16};
  }

  // The sums of a block, V vectors of 16 channels; between the products, the block before it is finished.
  template <int V, typename Finisher>
  INT8D_INLINE inline void multiply(const Pixels& x, const Panel& to, int32_t* sums, Finisher& finisher, int between,
                                    Fetcher& fetcher) const {
    auto finish = [&]() INT8D_INLINE {
      for (int i = between; i > 0 && finisher.more(); --i) finisher.step();
    };
    _tile_loadd(0, to.bias, 0);
    _tile_loadd(2, to.bias, 0);
    if constexpr (V == 2) {
      _tile_loadd(1, to.bias + 16, 0);
      _tile_loadd(3, to.bias + 16, 0);
    }
    const int8_t* w = to.weight;
    const size_t w2 = static_cast<size_t>(p.steps) * 64;
    const uint8_t *a = x.in[0] + to.in_channel, *b = x.in[1] + to.in_channel;
    const ptrdiff_t stride = s.sw * call.in.pixel;
    for (const ptrdiff_t *offset = offsets, *end = offset + runs; offset != end; ++offset, w += kTileBytes) {
      _tile_loadd(4, a + *offset, stride);
      _tile_loadd(6, w, amx::kRowBytes);
      _tile_dpbusd(0, 4, 6);
      finish();
      _tile_loadd(5, b + *offset, stride);
      _tile_dpbusd(2, 5, 6);
      finish();
      if constexpr (V == 2) {
        _tile_loadd(7, w + w2, amx::kRowBytes);
        _tile_dpbusd(1, 4, 7);
        finish();
        _tile_dpbusd(3, 5, 7);
        finish();
      }
      fetcher.step();
    }
    // The second tile's pixels follow the first one's.
    int32_t* const second = sums + cut.width * 16;
    _tile_stored(0, sums, amx::kRowBytes);
    finish();
    _tile_stored(2, second, amx::kRowBytes);
    finish();
    if constexpr (V == 2) {
      _tile_stored(1, sums + kAmxPixels * 16, amx::kRowBytes);
      finish();
      _tile_stored(3, second + kAmxPixels * 16, amx::kRowBytes);
    }
    while (finisher.more()) finisher.step();
  }

  // Panels first .. last - 1 of one group.
  void panels(int group, int first, int last) {
    const int whole = std::clamp(channels / 32, first, last), rest = channels % 32;
    auto with = [&]<int V, bool Whole>(std::integral_constant<int, V>, std::bool_constant<Whole>, int begin, int end) {
      const bool side_by_side = plain && cut.width % (4 / V) == 0;
      if (!epilogue.narrow)
        sweep<WideFinisher<V>>(group, begin, end, true);
      else if (epilogue.sum)
        side_by_side ? sweep<PlainFinisher<V, true, Whole>>(group, begin, end, false)
                     : sweep<ListFinisher<V, true>>(group, begin, end, true);
      else
        side_by_side ? sweep<PlainFinisher<V, false, Whole>>(group, begin, end, false)
                     : sweep<ListFinisher<V, false>>(group, begin, end, true);
    };
    constexpr std::integral_constant<int, 1> kOne;
    constexpr std::integral_constant<int, 2> kTwo;
    if (first < whole) with(kTwo, std::true_type(), first, whole);
    if (whole == last) return;
    if (rest == 16)
      with(kOne, std::true_type(), whole, last);
    else if (rest < 16)
      with(kOne, std::false_type(), whole, last);
    else
      with(kTwo, std::false_type(), whole, last);
  }

  // Input bytes that a run uses at most: all segments are alike.
  int run_bytes() const { return std::min((p.segments[0].bytes + 3) / 4 * 4, amx::kRowBytes); }

  // Rows first_row .. first_row + rows - 1 of map n.
  void map(int rows) {
    const int pitch = static_cast<int>(call.in.row / call.in.pixel);
    cut = Cut::by_rows(s, rows);
    plain = cut.width % 2 == 0;
    if (s.sh == 1 && s.sw == 1) {
      auto dense = [&](const View& v) { return v.row == v.pixel * s.ow; };
      const Cut one = Cut::in_one(s, rows, pitch);
      const bool side_by_side =
          one.width % 2 == 0 && pitch == s.ow && dense(call.out) && (!call.add || dense(call.residual));
      if (one.cycles(!side_by_side) < cut.cycles(!plain)) cut = one, plain = side_by_side;
    }
    const amx::Tiles tiles(cut.width, run_bytes());
    const int of_group = (channels + 31) / 32;
    for (int panel = call.panel_begin; panel < call.panel_end;) {
      const int group = panel / of_group, end = std::min(call.panel_end, (group + 1) * of_group);
      panels(group, panel % of_group, panel % of_group + end - panel);
      panel = end;
    }
  }
};

}  // namespace

void conv_u8s8_32x32_amx(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Epilogue epilogue(p.output(call), p.narrow);
  const AmxScratch scratch(s, p.steps);
  ptrdiff_t* const offsets = reinterpret_cast<ptrdiff_t*>(call.scratch + scratch.offsets);
  ptrdiff_t* offset = offsets;
  for (const ConvSegment& segment : p.segments)
    for (int step = 0; step < segment.steps; step += kRows)
      *offset++ = segment.ky * s.dh * call.in.row + segment.kx * s.dw * call.in.pixel + 4 * step;
  Runner r{call, p, s, epilogue, offsets, reinterpret_cast<int32_t*>(call.scratch), call.scratch + scratch.nowhere};
  for (int row = call.row_begin; row < call.row_end;) {
    r.n = row / s.oh;
    r.first_row = row % s.oh;
    const int rows = std::min(call.row_end - row, s.oh - r.first_row);
    r.map(rows);
    row += rows;
  }
}

}  // namespace int8d
