// The kernels that kernels.inc lists.
#pragma once
#include "../conv/pack.h"
#include "linear.h"

namespace int8d {
#define INT8D_LINEAR(name, isa, panel, pack) void name(const LinearCall&);
#include "kernels.inc"
#undef INT8D_LINEAR
}  // namespace int8d
