// The kernels that kernels.inc lists.
#pragma once
#include "move.h"

namespace int8d {
#define INT8D_MOVE(isa) void move_##isa(const MoveCall&);
#include "kernels.inc"
#undef INT8D_MOVE
}  // namespace int8d
