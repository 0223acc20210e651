#include "conv.h"

#include <algorithm>

#include "pack.h"
#include "winograd.h"

namespace int8d {
namespace {

// The vector kernels keep one offset a segment on the stack.
bool accepts(const ConvShape& s) { return s.kh * s.kw <= 256; }
int rows(const ConvShape& s) { return s.batch * s.oh; }
size_t no_scratch(const ConvShape&) { return 0; }

[[maybe_unused]] bool amx_accepts(const ConvShape& s) { return accepts(s) && s.oh * s.ow >= 16; }
[[maybe_unused]] size_t amx_scratch(const ConvShape& s) {
  int steps = 0;
  for (const ConvSegment& segment : conv_segments(s, 4, 16)) steps += segment.steps;
  return AmxScratch(s, 3 * steps).bytes;  // a rest may have two pieces
}

[[maybe_unused]] int tiles(const ConvShape& s) { return s.batch * WinogradGrid(s).tiles(); }

// Of several that fit, the last one is the best guess.
constexpr ConvKernel kKernels[] = {
#define INT8D_CONV(name, isa, panel, pack) \
  {#name, Isa::isa, panel, [](const ConvDef& def) { return pack(def, panel); }, name, accepts, rows, no_scratch},
#define INT8D_CONV_WORDS(name, isa, panel)             \
  {#name, Isa::isa, panel, [](const ConvDef& def) { return conv_pack_words(def, panel); }, \
   name,  accepts,  rows,  [](const ConvShape& s) { return ConvWords(s).bytes(s); }},
#define INT8D_WINOGRAD(name, isa, panel, rows, expand) \
  {#name, Isa::isa,                                    \
   panel, [](const ConvDef& def) { return winograd_pack(def, {panel, rows, expand}); },                  \
   name,  winograd_accepts,                            \
   tiles, [](const ConvShape& s) { return WinogradScratch(s, {panel, rows, expand}).bytes(); }},
#define INT8D_CONV_AMX(name) {#name, Isa::amx, 32, conv_pack_tiles, name, amx_accepts, rows, amx_scratch},
#include "kernels.inc"
#undef INT8D_CONV
#undef INT8D_CONV_WORDS
#undef INT8D_WINOGRAD
#undef INT8D_CONV_AMX
};

}  // namespace

int ConvShape::band(int64_t bytes) const {
  return static_cast<int>(bytes / std::max<int64_t>(1, int64_t{sh} * iw * ic));
}

std::span<const ConvKernel> conv_kernels() { return kKernels; }

std::vector<const ConvKernel*> conv_candidates(const ConvShape& shape, Isa isa) {
  std::vector<const ConvKernel*> found;
  for (const ConvKernel& kernel : kKernels) {
    if (kernel.isa > isa || !isa_supported(kernel.isa) || !kernel.accepts(shape)) continue;
    // Beside AMX, the kernels of AVX512 may be the better ones for narrow layers.
    if (!found.empty() && found.front()->isa < std::min(kernel.isa, Isa::avx512vnni)) found.clear();
    found.insert(found.begin(), &kernel);
  }
  // Winograd's, the first of its instruction set in the list, has weights 8 times as large: below 14x14 there are too
  // few tiles to pay for reading them, but for AVX2, whose direct form is so much slower. AMX does without.
  const int least = !found.empty() && found[0]->isa == Isa::avx2 ? 7 * 7 : 14 * 14;
  if (found.size() > 1 && found[0]->isa != Isa::amx && winograd_accepts(shape) && shape.oh * shape.ow >= least &&
      shape.oc >= 32)
    std::rotate(found.begin(), found.end() - 1, found.end());
  if (found.empty()) found.push_back(&kKernels[0]);  // the reference takes any window
  return found;
}

}  // namespace int8d
