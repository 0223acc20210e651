#include "move.h"

#include <algorithm>

#include "variants.h"

namespace int8d {
namespace {

constexpr MoveKernel kKernels[] = {
#define INT8D_MOVE(isa) {"move_" #isa, Isa::isa, move_##isa},
#include "kernels.inc"
#undef INT8D_MOVE
};

}  // namespace

std::span<const MoveKernel> move_kernels() { return kKernels; }

const MoveKernel& move_kernel(Isa isa) {
  const MoveKernel* best = &kKernels[0];
  for (const MoveKernel& kernel : kKernels)
    if (kernel.isa <= isa && isa_supported(kernel.isa)) best = &kernel;
  return *best;
}

MoveShape simplify(const MoveShape& shape) {
  MoveShape s;
  s.element = shape.element;
  for (size_t i = 0; i < static_cast<size_t>(shape.rank); ++i) {
    const int64_t n = shape.count[i];
    if (n == 1) continue;
    const size_t last = static_cast<size_t>(s.rank) - 1;
    if (s.rank > 0 && s.in[last] == shape.in[i] * n && s.out[last] == shape.out[i] * n) {
      s.count[last] *= n;
      s.in[last] = shape.in[i];
      s.out[last] = shape.out[i];
    } else {
      s.loop(n, shape.in[i], shape.out[i]);
    }
  }
  if (s.rank == 0) s.loop(1, static_cast<ptrdiff_t>(s.element), static_cast<ptrdiff_t>(s.element));
  return s;
}

MoveCall share_of(const MoveCall& call, int worker, int workers) {
  // The longest loop is cut, where it can be, into whole tiles of a transposition.
  constexpr int64_t kGrain = 64;
  const auto& count = call.shape.count;
  const auto axis =
      static_cast<size_t>(std::max_element(count.begin(), count.begin() + call.shape.rank) - count.begin());
  const int64_t n = count[axis], grain = n >= kGrain * workers ? kGrain : 1, grains = (n + grain - 1) / grain;
  const int64_t begin = std::min(n, grains * worker / workers * grain);
  const int64_t end = std::min(n, grains * (worker + 1) / workers * grain);
  MoveCall mine = call;
  mine.in += begin * call.shape.in[axis];
  mine.out += begin * call.shape.out[axis];
  mine.shape.count[axis] = end - begin;
  return mine;
}

}  // namespace int8d
