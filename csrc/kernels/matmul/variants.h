// The kernels that kernels.inc lists, and where things lie in their scratch: offsets in bytes, multiples of 64.
#pragma once
#include "matmul.h"

namespace int8d {

struct MatmulNoScratch {
  size_t bytes = 0;
  explicit MatmulNoScratch(const MatmulShape&) {}
};

// A panel of b, the sums of its columns and those of a's rows.
struct MatmulScratch {
  static constexpr int kPanel = 32;  // columns, at most
  size_t columns, rows, bytes;
  explicit MatmulScratch(const MatmulShape& s)
      : columns((static_cast<size_t>(s.k) + 63) / 64 * 64 * kPanel),
        rows(columns + kPanel * sizeof(int32_t)),
        bytes(rows + (static_cast<size_t>(s.m) * sizeof(int32_t) + 63) / 64 * 64) {}
};

// The same, and the sums of two blocks of 32 rows by 32 columns.
struct MatmulTilesScratch : MatmulScratch {
  static constexpr int kRows = 32;
  size_t sums;
  explicit MatmulTilesScratch(const MatmulShape& s) : MatmulScratch(s), sums(bytes) {
    bytes += 2 * kRows * kPanel * sizeof(int32_t);
  }
};

// A panel of b and all of a, both as words without their zero points.
struct MatmulWordsScratch {
  static constexpr int kPanel = 16;
  size_t a_row, a, bytes;
  explicit MatmulWordsScratch(const MatmulShape& s)
      : a_row((static_cast<size_t>(s.k) + 31) / 32 * 64),
        a(a_row * kPanel),
        bytes(a + a_row * static_cast<size_t>(s.m)) {}
};

#define INT8D_MATMUL(name, isa, scratch) void name(const MatmulCall&);
#include "kernels.inc"
#undef INT8D_MATMUL

}  // namespace int8d
