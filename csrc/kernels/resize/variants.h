// The kernels that kernels.inc lists.
#pragma once
#include "resize.h"

namespace int8d {
#define INT8D_RESIZE(isa)                                                                      \
  void resize_columns_##isa(const uint8_t*, ptrdiff_t, std::span<const Blend>, int, int32_t*); \
  void resize_rows_##isa(const int32_t*, const int32_t*, int32_t, size_t, uint8_t*);
#include "kernels.inc"
#undef INT8D_RESIZE
}  // namespace int8d
