// The kernels that kernels.inc lists.
#pragma once
#include "lut.h"

namespace int8d {
#define INT8D_LUT(name, isa) void name(const uint8_t*, uint8_t*, size_t, const uint8_t*);
#include "kernels.inc"
#undef INT8D_LUT
}  // namespace int8d
