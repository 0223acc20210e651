// Direct convolution in registers of 256 bits: AVX2 and AVX-VNNI. Tile: any `Dot::kPixels` pixels x 16 output channels.
//
// A step takes 4 bytes of each pixel's window, 2 vectors of weights and as many broadcasts as there are pixels. Every
// pixel has an address of its own and all share one offset into the window, so that a tile may run over the end of a
// row: there are no narrow tiles but a band's last ones. What `Dot` multiplies is 4 bytes, or 2 words where the input
// has been widened.
#pragma once
#include <algorithm>
#include <array>
#include <optional>

#include "../common/epilogue_avx2.h"
#include "../common/unroll.h"
#include "pack.h"

namespace int8d {
namespace {

constexpr int kMostPixels = 6, kChannels = 16, kStepBytes = 64;

// What the epilogue of every tile of a call needs.
struct Epilogue {
  Output output;
  avx2::Finish finish;
  const avx2::Sum* sum;  // of the residual, or null
  bool narrow;
};

struct Tile {
  std::array<const uint8_t*, kMostPixels> in, residual;  // of each pixel: the first tap, and the panel's first channel
  std::array<uint8_t*, kMostPixels> out;
  const uint8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  const ptrdiff_t* offsets;  // of each segment, from the first tap
  const ConvPacked* packed;
  const Epilogue* epilogue;
  int panel, channels;  // those of the panel that exist
};

// The rare case, element by element: multipliers so large that rounding before clamping could leave int32.
[[gnu::noinline]] void finish_wide(const Tile& t, const int32_t* sums, int pixels) {
  for (int p = 0; p < pixels; ++p)
    for (int c = 0; c < t.channels; ++c) {
      const uint8_t residual = t.epilogue->output.add ? t.residual[static_cast<size_t>(p)][c] : 0;
      t.out[static_cast<size_t>(p)][c] = finish(sums[p * kChannels + c], t.multiplier[c], residual, t.epilogue->output);
    }
}

[[gnu::noinline]] void look_up(const Tile& t, int pixels) {
  for (int p = 0; p < pixels; ++p) {
    uint8_t* out = t.out[static_cast<size_t>(p)];
    alignas(16) uint8_t bytes[16];
    __builtin_memcpy(bytes, out, static_cast<size_t>(t.channels));
    const __m256i q = _mm256_castsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    avx2::store_bytes(out, _mm256_castsi256_si128((*t.epilogue->finish.lookup)(q)), t.channels);
  }
}

template <typename Dot, int P>
void run_tile(const Tile& t) {
  __m256i acc[P][2];
  const __m256i* bias = reinterpret_cast<const __m256i*>(t.bias);
  unroll<P>([&](auto p) INT8D_INLINE {
    acc[p][0] = _mm256_load_si256(bias);
    acc[p][1] = _mm256_load_si256(bias + 1);
  });
  const uint8_t* in[P];
  unroll<P>([&](auto p) INT8D_INLINE { in[p] = t.in[p]; });
  auto step = [&](ptrdiff_t at, const uint8_t* w) INT8D_INLINE {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
    unroll<P>([&](auto p) INT8D_INLINE {
      const __m256i x = avx2::broadcast4(in[p] + at);
      acc[p][0] = Dot::dot(acc[p][0], x, w0);
      acc[p][1] = Dot::dot(acc[p][1], x, w1);
    });
  };
  const ConvPacked& packed = *t.packed;
  const uint8_t* w = t.weight;
  const ptrdiff_t ahead = ptrdiff_t{packed.steps} * kStepBytes;  // the next panel's weights may lie beyond L2
  const ptrdiff_t* offset = t.offsets;
  for (const ConvSegment& segment : packed.segments) {
    ptrdiff_t at = *offset++;
    for (const ptrdiff_t end = at + 4 * segment.steps; at < end; at += 4, w += kStepBytes) {
      step(at, w);
      _mm_prefetch(reinterpret_cast<const char*>(w + ahead), _MM_HINT_T1);
    }
  }
  if constexpr (Dot::kSplit) {
    const auto* extra = packed.extras.data();
    const int first = packed.extra_begin[static_cast<size_t>(t.panel)],
              last = packed.extra_begin[static_cast<size_t>(t.panel) + 1];
    w = reinterpret_cast<const uint8_t*>(packed.extra_weight.data()) + static_cast<size_t>(first) * kStepBytes;
    for (int i = first; i < last; ++i, w += kStepBytes) step(t.offsets[extra[i].segment] + 4 * extra[i].step, w);
  }

  const Epilogue& e = *t.epilogue;
  if (!e.narrow) [[unlikely]] {
    alignas(32) int32_t sums[P][kChannels];
    unroll<P>([&](auto p) INT8D_INLINE {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[p]), acc[p][0]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[p] + 8), acc[p][1]);
    });
    finish_wide(t, &sums[0][0], P);
    return;
  }
  const __m256 m0 = _mm256_load_ps(t.multiplier), m1 = _mm256_load_ps(t.multiplier + 8);
  auto round = [&](auto p, auto v, __m256 m) INT8D_INLINE {
    if (!e.sum) return avx2::round_narrow(acc[p][v], m);
    const uint8_t* residual = t.residual[p] + 8 * v;
    const int left = t.channels - 8 * v;
    const __m128i bytes = left >= 8   ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(residual))
                          : left <= 0 ? _mm_setzero_si128()
                                      : avx2::load8(residual, left);
    return avx2::sum_narrow(acc[p][v], m, bytes, *e.sum);
  };
  const std::integral_constant<int, 0> low;
  const std::integral_constant<int, 1> high;
  unroll<(P + 1) / 2>([&](auto pair) INT8D_INLINE {  // two pixels are packed together
    constexpr int p = 2 * pair, next = p + 1 < P ? p + 1 : p;
    const std::integral_constant<int, p> one;
    const std::integral_constant<int, next> other;
    const __m256i bytes = avx2::clamp4(round(one, low, m0), round(one, high, m1), round(other, low, m0),
                                       round(other, high, m1), e.finish);
    avx2::store_bytes(t.out[p], _mm256_castsi256_si128(bytes), t.channels);
    if constexpr (next != p) avx2::store_bytes(t.out[next], _mm256_extracti128_si256(bytes, 1), t.channels);
  });
  if (e.finish.lookup) [[unlikely]]
    look_up(t, P);
}

// The tiles of rows begin .. end - 1 (of one image) and of all panels of a call. `in` is the call's input or, in words,
// a copy of the part that those rows read, and then at(0, 0, 0) is the first row's first tap.
template <typename Dot>
void run_band(const ConvCall& call, Tile& t, const View& in, int begin, int end) {
  using Run = void (*)(const Tile&);
  constexpr std::array<Run, 7> kTiles = {nullptr,
                                         run_tile<Dot, 1>,
                                         run_tile<Dot, 2>,
                                         run_tile<Dot, 3>,
                                         run_tile<Dot, 4>,
                                         Dot::kPixels < 5 ? nullptr : run_tile < Dot,
                                         Dot::kPixels < 5 ? 1 : 5 >
                                         , Dot::kPixels < 6 ? nullptr : run_tile < Dot, Dot::kPixels < 6 ? 1 : 6 > };
  const ConvPacked& p = *t.packed;
  const ConvShape& s = p.shape;
  const int n = begin / s.oh, first = begin % s.oh, per_group = p.panels_of_group();
  const int pixels = (end - begin) * s.ow, blocks = (pixels + Dot::kPixels - 1) / Dot::kPixels;
  const uint8_t* origin = Dot::kWords ? in.data : in.at(n, first * s.sh - s.pad_top, -s.pad_left);
  const ptrdiff_t in_pixel = s.sw * in.pixel;
  const uint8_t* weight = Dot::kWords ? reinterpret_cast<const uint8_t*>(p.weight16.data())
                                      : reinterpret_cast<const uint8_t*>(p.weight.data());
  for (t.panel = call.panel_begin; t.panel < call.panel_end; ++t.panel) {
    const int g = t.panel / per_group, channel = t.panel % per_group * kChannels;
    const int oc = g * p.channels_of_group() + channel, ic = g * (s.ic / s.groups) * (Dot::kWords ? 2 : 1);
    t.channels = std::min(kChannels, p.channels_of_group() - channel);
    t.weight = weight + static_cast<size_t>(t.panel) * p.steps * kStepBytes;
    t.bias = p.bias.data() + t.panel * kChannels;
    t.multiplier = p.multiplier.data() + t.panel * kChannels;
    const uint8_t* in_row = origin + ic;
    uint8_t* out_row = call.out.at(n, first, 0) + oc;
    const uint8_t* residual_row = call.add ? call.residual.at(n, first, 0) + oc : nullptr;
    int x = 0;
    for (int block = 0, done = 0; block < blocks; ++block) {
      const int count = (pixels - done + blocks - block - 1) / (blocks - block);
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        t.in[i] = in_row + x * in_pixel;
        t.out[i] = out_row + x * call.out.pixel;
        if (residual_row) t.residual[i] = residual_row + x * call.residual.pixel;
        if (++x < s.ow) continue;
        x = 0;
        in_row += s.sh * in.row;
        out_row += call.out.row;
        if (residual_row) residual_row += call.residual.row;
      }
      kTiles[static_cast<size_t>(count)](t);
      done += count;
    }
  }
}

// Bytes to words, for the windows of rows begin .. end - 1.
inline View widen(const ConvCall& call, const ConvShape& s, int begin, int end) {
  const ConvWords words(s);
  const int n = begin / s.oh, first = begin % s.oh * s.sh - s.pad_top;
  const int rows = (end - begin - 1) * s.sh + (s.kh - 1) * s.dh + 1, bytes = words.columns * s.ic;
  for (int y = 0; y < rows; ++y) {
    const uint8_t* from = call.in.at(n, first + y, -s.pad_left);
    uint8_t* to = call.scratch + static_cast<size_t>(y) * words.row_bytes;
    for (int i = 0; i < bytes; i += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 2 * i),
                         _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  return {call.scratch, 0, static_cast<ptrdiff_t>(words.row_bytes), static_cast<ptrdiff_t>(2) * s.ic};
}

template <typename Dot>
void run_direct(const ConvCall& call) {
  const ConvPacked& p = *call.packed;
  const ConvShape& s = p.shape;
  const Output output = p.output(call);
  std::optional<avx2::Sum> sum;
  if (call.add) sum.emplace(output, *call.add);
  const Epilogue epilogue{output, avx2::Finish(output), sum ? &*sum : nullptr,
                          p.narrow && (!call.add || is_narrow(*call.add))};
  std::array<ptrdiff_t, kMostSegments> offsets;
  Tile t;
  t.offsets = offsets.data();
  t.packed = &p;
  t.epilogue = &epilogue;
  // Rows that are worked on together, panel by panel: their input should stay in L2 beside the panel's weights.
  const int band = Dot::kWords ? ConvWords(s).band : std::max(2, s.band(256 * 1024));
  for (int begin = call.row_begin, end; begin < call.row_end; begin = end) {
    end = std::min({begin + band, call.row_end, (begin / s.oh + 1) * s.oh});
    const View in = Dot::kWords ? widen(call, s, begin, end) : call.in;
    for (size_t i = 0; i < p.segments.size(); ++i) offsets[i] = p.segments[i].offset(s, in);
    run_band<Dot>(call, t, in, begin, end);
  }
}

}  // namespace
}  // namespace int8d
