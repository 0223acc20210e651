// What a packed convolution holds, the one packing routine that every kernel uses, and the kernels of kernels.inc.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/aligned.h"
#include "conv.h"

namespace int8d {

// A run of input bytes that lie side by side in memory: one tap's channels, or, where dilation and groups allow it,
// a whole row of taps. It is read in steps of 4 bytes, or, for AMX, in runs of 16 steps; missing weights are zero.
// Behind the segments of the window come those parts of them that are read again, for weights that 8 bits don't hold.
struct ConvSegment {
  int ky, kx;     // its first tap
  int bytes;      // kw * ic, or ic / groups; of a part, fewer
  int steps;      // ceil(bytes / 4), or of words, ceil(bytes / 2); in whole runs
  int first = 0;  // the step of the window's segment with which a part begins

  // Where it begins, from the window's first byte.
  ptrdiff_t offset(const ConvShape& s, const View& in) const {
    return ky * s.dh * in.row + kx * s.dw * in.pixel + 4 * ptrdiff_t{first};
  }
};
// A window has 256 segments at most where kernels keep their offsets on the stack; each piece of a rest has as many.
constexpr int kMostSegments = 768;

// A step that a panel takes once more, with what its weights in `weight` leave: see conv_pack_extras.
struct ConvExtra {
  int segment, step;
};

// What a Winograd kernel wants (winograd.h).
struct WinogradForm {
  int panel;    // output channels in a panel
  int rows;     // tiles that its products take at a time
  bool expand;  // whether it can compute U as it goes
};

struct ConvPacked {
  ConvShape shape;
  int32_t lo = 0, hi = 255, out_zp = 0;
  bool narrow = false;                // every |acc * multiplier| is known to stay below 2^30
  int panel = 1;                      // output channels in a panel
  int steps = 0;                      // of one panel: the sum over the segments
  std::vector<ConvSegment> segments;  // in the order of the weights
  WinogradForm winograd{};
  Aligned<int8_t> weight;         // [panels][steps][panel][4]; Winograd's: [panels][ic / 2][9][panel][2], or
  Aligned<int16_t> weight16;      // U, [panels][planes][ic / 2][panel][2]
  Aligned<int32_t> bias;          // [panels * panel], bias - in_zp * sum(w)
  Aligned<float> multiplier;      // [panels * panel]
  std::vector<ConvExtra> extras;  // of all panels, in order
  std::vector<int> extra_begin;   // [panels + 1], into extras
  Aligned<int8_t> extra_weight;   // [extras][panel][4]

  Output output(const ConvCall& call) const { return {lo, hi, out_zp, call.add, call.table}; }
  int channels_of_group() const { return shape.oc / shape.groups; }
  int panels_of_group() const { return (channels_of_group() + panel - 1) / panel; }
};

// Whether |acc * multiplier| < 2^30 for every channel, from weights [oc][k] and u8 inputs.
bool is_narrow(const ConvDef& def);
// bias - in_zp * sum(w) of an output channel, modulo 2^32.
int32_t folded_bias(const ConvDef& def, int channel);
// The rest as a sum of s8 [oc][k]: none where there is none, and two only where a weight is 255 (127 + 127 + 1).
std::vector<std::vector<int8_t>> rest_pieces(const ConvDef& def);

// The segments of a convolution, read in steps of `step` values, padded to a multiple of `run` steps.
std::vector<ConvSegment> conv_segments(const ConvShape& s, int step, int run);

// Packs for panels of `panel` channels. Where weights of some panel have a rest, all panels read those steps again.
ConvPackedPtr conv_pack(const ConvDef& def, int panel);
// Packs for panels of `panel` channels, each with extra steps of its own for what its steps can't hold: rests, and,
// with `saturating`, pairs of weights that vpmaddubsw adds and whose sum, of one sign, exceeds 128.
ConvPackedPtr conv_pack_extras(const ConvDef& def, int panel, bool saturating);
// The latter, saturating; null where so many steps would be taken again that words are faster.
ConvPackedPtr conv_pack_split(const ConvDef& def, int panel);
// Packs for inputs widened to words, of which a step reads 2: words hold any weight, and pairs of their products can't
// saturate.
ConvPackedPtr conv_pack_words(const ConvDef& def, int panel);
// Packs for panels of 16 channels and runs of 16 steps: AMX's tiles of weights.
ConvPackedPtr conv_pack_tiles(const ConvDef& def);

// A copy of the input in words, as much of it as `band` rows of the output read.
struct ConvWords {
  int band, columns;
  size_t row_bytes;
  explicit ConvWords(const ConvShape& s)
      : band(std::max(2, s.band(128 * 1024))),
        columns((s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 1),
        row_bytes((static_cast<size_t>(columns) * s.ic * 2 + 127) / 64 * 64) {}
  size_t bytes(const ConvShape& s) const {
    return static_cast<size_t>((std::min(band, s.oh) - 1) * s.sh + (s.kh - 1) * s.dh + 1) * row_bytes + kOverread;
  }
};

// What AMX's kernel keeps in its scratch: the sums of two blocks, a place for outputs that nobody wants, and the
// offsets of the runs of input bytes; all but the sums' place in bytes from its beginning.
constexpr int kAmxPixels = 32, kAmxSums = 2 * 2 * kAmxPixels * 16;
struct AmxScratch {
  size_t nowhere, offsets, bytes;
  AmxScratch(const ConvShape& s, int steps)
      : nowhere(kAmxSums * sizeof(int32_t)),
        offsets(nowhere + (static_cast<size_t>(s.oc) + 127) / 64 * 64),
        bytes(offsets + static_cast<size_t>(steps) / 16 * sizeof(ptrdiff_t)) {}
};

#define INT8D_CONV(name, isa, panel, pack) void name(const ConvCall&);
#define INT8D_CONV_WORDS(name, isa, panel) void name(const ConvCall&);
#define INT8D_WINOGRAD(name, isa, panel, rows, expand) void name(const ConvCall&);
#define INT8D_CONV_AMX(name) void name(const ConvCall&);
#include "kernels.inc"
#undef INT8D_CONV
#undef INT8D_CONV_WORDS
#undef INT8D_WINOGRAD
#undef INT8D_CONV_AMX

}  // namespace int8d
