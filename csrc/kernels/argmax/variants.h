// The kernels that kernels.inc lists.
#pragma once
#include "argmax.h"

namespace int8d {
#define INT8D_ARGMAX(isa) void argmax_u8_##isa(const uint8_t*, size_t, size_t, int32_t*);
#include "kernels.inc"
#undef INT8D_ARGMAX
}  // namespace int8d
