#include "resize.h"

#include <cstring>
#include <utility>

#include "variants.h"

namespace int8d {
namespace {

constexpr ResizeKernel kKernels[] = {
#define INT8D_RESIZE(isa) {"resize_" #isa, Isa::isa, resize_columns_##isa, resize_rows_##isa},
#include "kernels.inc"
#undef INT8D_RESIZE
};

// Pixels as they are; rows that come from the same one are copied whole.
void nearest(const ResizeCall& call) {
  const auto c = static_cast<size_t>(call.c);
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const int n = row / call.oh, y = row % call.oh;
    const int32_t from = call.rows[static_cast<size_t>(y)].low;
    uint8_t* out = call.out.at(n, y, 0);
    if (row > call.row_begin && y > 0 && call.rows[static_cast<size_t>(y) - 1].low == from) {
      std::memcpy(out, call.out.at(n, y - 1, 0), static_cast<size_t>(call.ow) * c);
      continue;
    }
    for (const Blend& b : call.columns) {
      std::memcpy(out, call.in.at(n, from, b.low), c);
      out += c;
    }
  }
}

}  // namespace

std::span<const ResizeKernel> resize_kernels() { return kKernels; }

const ResizeKernel& resize_kernel(Isa isa) {
  const ResizeKernel* best = &kKernels[0];
  for (const ResizeKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

void resize2d(const ResizeKernel& kernel, const ResizeCall& call) {
  if (call.nearest) return nearest(call);
  const size_t count = static_cast<size_t>(call.ow) * static_cast<size_t>(call.c);
  int32_t *low = call.scratch, *high = call.scratch + count;
  int have_low = -1, have_high = -1, image = -1;  // whose rows they hold
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const int n = row / call.oh, y = row % call.oh;
    const Blend& b = call.rows[static_cast<size_t>(y)];
    if (n != image) have_low = have_high = -1;
    image = n;
    if (have_low != b.low && (have_high == b.low || have_low == b.high)) {
      std::swap(low, high);
      std::swap(have_low, have_high);
    }
    if (have_low != b.low) kernel.columns(call.in.at(n, have_low = b.low, 0), call.in.pixel, call.columns, call.c, low);
    const bool blended = b.weight != 0 && b.high != b.low;
    if (blended && have_high != b.high)
      kernel.columns(call.in.at(n, have_high = b.high, 0), call.in.pixel, call.columns, call.c, high);
    kernel.rows(low, blended ? high : low, b.weight, count, call.out.at(n, y, 0));
  }
}

}  // namespace int8d
