// The kernels that kernels.inc lists, and the division that they share.
//
// Where a row has many elements, what divides is its sum, always the same. x = e * (1 / sum) in double lies within 3 of
// its last places of the rounded quotient; both then round to the same fp32, unless a point halfway between two of
// those, 2^28 in the 29 bits that go, lies in between. Only then is the division itself needed.
#pragma once
#include <cstdint>

#include "softmax.h"

namespace int8d {

inline constexpr uint64_t kDropped = (uint64_t{1} << 29) - 1, kHalfway = uint64_t{1} << 28, kDoubt = 8;

// Below this, an entry's share is surely quantized to the zero point: it is less than half a step.
inline double softmax_least(const SoftmaxParams& p, double sum) { return 0.49 * static_cast<double>(p.scale) * sum; }

#define INT8D_SOFTMAX(name, isa) void name(const SoftmaxCall&);
#include "kernels.inc"
#undef INT8D_SOFTMAX

}  // namespace int8d
