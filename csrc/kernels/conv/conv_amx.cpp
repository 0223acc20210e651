// Direct convolution, AMX. Block: 2 tiles of up to 16 pixels x 32 output channels.
//
// Tiles: 4 sums, 2 of pixels, 2 of weights (common/amx.h). A step of 64 input bytes takes 4 loads of 16 rows and 4
// tdpbusd: 64 cycles, bound by tdpbusd. A tile's rows are pixels where they lie in the map, `pixel` bytes apart: no
// im2col. The sums start as the bias, one row read 16 times; they end in the scratch, and become bytes as in
// conv_avx512vnni.cpp, 2.5 cycles a vector, between the next block's products, which hide a part of it.
//
// Pixels are cut into tiles row by row, or, with stride 1, all of a map's rows in one run that takes in the halo
// between them (its results are thrown away), whichever costs fewer cycles. Where tiles do not fit, the last one laps
// over.
#include <algorithm>
#include <utility>

#include "amx_finishers.h"

namespace int8d {
namespace {

using amx::kTileBytes;

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
  std::span<const uint8_t> left() const { return at < end ? std::span(at, end) : std::span<const uint8_t>(); }
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
  std::span<const uint8_t> ahead = call.ahead;  // what no sweep has fetched yet
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
      for (uint8_t** stop = std::min(end, to + std::max(0, cut.pitch - std::max(column, s.ow))); to < stop;)
        *to++ = nowhere;
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
    Fetcher fetcher(ahead, static_cast<size_t>(blocks) * static_cast<size_t>(last - first) * runs);
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
    ahead = fetcher.left();
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

  // Input bytes that a run uses at most: all segments are alike, or parts of them in whole runs.
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
    for (int step = 0; step < segment.steps; step += kRows) *offset++ = segment.offset(s, call.in) + 4 * step;
  Runner r{call, p, s, epilogue, offsets, reinterpret_cast<int32_t*>(call.scratch), call.scratch + scratch.nowhere};
  for (int row = call.row_begin, rows; row < call.row_end; row += rows) {
    r.n = row / s.oh;
    r.first_row = row % s.oh;
    rows = std::min(call.row_end - row, s.oh - r.first_row);
    r.map(rows);
  }
}

}  // namespace int8d
