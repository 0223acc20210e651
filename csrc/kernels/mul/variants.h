// The kernels that kernels.inc lists.
#pragma once
#include "mul.h"

namespace int8d {
#define INT8D_MUL(name, isa) void name(const MulCall&);
#include "kernels.inc"
#undef INT8D_MUL
}  // namespace int8d
