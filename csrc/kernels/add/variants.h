// The kernels that kernels.inc lists.
#pragma once
#include "add.h"

namespace int8d {
#define INT8D_ADD(name, isa) void name(const uint8_t*, const uint8_t*, uint8_t*, size_t, const AddParams&);
#include "kernels.inc"
#undef INT8D_ADD
}  // namespace int8d
