// One loop an instruction set: `rounds` times 10 independent dot products, without memory.
#pragma once
#include <cstdint>

namespace int8d {

constexpr int kPeakChains = 10;  // in flight: enough to hide 4 cycles at 2 a cycle

#define INT8D_PEAK(isa, macs) void peak_##isa(int64_t rounds);
#include "kernels.inc"
#undef INT8D_PEAK

}  // namespace int8d
