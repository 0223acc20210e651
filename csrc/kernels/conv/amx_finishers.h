// What becomes of a block of AMX's sums: 2 tiles of up to 16 pixels x 32 output channels. Included by conv_amx.cpp
// only.
#pragma once
#include <algorithm>

#include "../common/amx.h"
#include "../common/epilogue_avx512.h"
#include "../common/unroll.h"
#include "pack.h"

namespace int8d {
namespace {

using amx::kRows;
using avx512::Epilogue;

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

}  // namespace
}  // namespace int8d
