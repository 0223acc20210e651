// Exact Winograd convolution F(4x4, 3x3) in int16 (numerics.md): fewer multiplications for 3x3 windows of stride 1.
//
// The map is cut into tiles of 4x4 outputs; a width or height of 4 k + 2 or 4 k + 3 ends in tiles of 2 or 3, whose
// points are among those of F(4, 3) (0, 1, -1, 2, -2, infinity), so that all use the same weights. In each dimension,
// with g the window and d the input:
//
//   V = B' d,  U = G g,  576 Y = A' [ (U . V) summed over channels ] A   (both dimensions; 24 Y in one)
//
//   G (all):    6 0 0 | -4 -4 -4 | -4 4 -4 | 1 2 4 | 1 -2 4 | 0 0 6
//   B' of F(4): 4 0 -5 0 1 0 | 0 -4 -4 1 1 0 | 0 4 -4 -1 1 0 | 0 -2 -1 2 1 0 | 0 2 -1 -2 1 0 | 0 4 0 -5 0 1
//   A' of F(4): 1 1 1 1 1 0 | 0 1 -1 2 -2 0 | 0 1 1 4 4 0 | 0 1 -1 8 -8 4
//   B' of F(3): 2 -1 -2 1 0 | 0 -2 -1 1 0 | 0 2 -3 1 0 | 0 -1 0 1 0 | 0 2 -1 -2 1   (points 0, 1, -1, 2, infinity)
//   A' of F(3): 2 3 1 4 0 | 0 3 -1 8 0 | 0 3 1 16 4
//   B' of F(2): 1 0 -1 0 | 0 1 1 0 | 0 -1 1 0 | 0 -1 0 1       (points 0, 1, -1, infinity)
//   A' of F(2): 4 -3 -3 0 | 0 -3 3 4
//
// |V| <= 17340 and |U| <= 18288 fit int16; sums wrap at 32 bits, and S * 0x38E38E39 = 64 Y exactly where |Y| < 2^25.
#pragma once
#include "pack.h"

namespace int8d {

constexpr int kPlanes = 36;  // a 6x6 tile of transformed values, value by value

// 3x3, stride 1, channels in whole vectors, maps that end in no tile of 1.
bool winograd_accepts(const ConvShape& s);

// Null where the bound on |Y| can't be proven, and where weights don't fit s8: neither would U then fit int16.
ConvPackedPtr winograd_pack(const ConvDef& def, const WinogradForm& form);

// Whether the weights stay s8, and U is computed as it is used, a third of its planes at a time: where there are so few
// tiles that reading an U of 8 times the bytes from beyond L2 would take longer than the products.
bool winograd_expands(const ConvShape& s, const WinogradForm& form);
constexpr int kExpanded = 64;  // input channels whose U is computed together
// Bytes from plane to plane of that U; odd multiples of 64, or planes would share cache sets. The same of V and M
// below.
constexpr size_t winograd_u_plane(int panel) { return static_cast<size_t>(kExpanded * panel * 2 + 64); }

// The tiles of all maps of a batch, in rows.
struct WinogradGrid {
  int rows, columns;          // of tiles, in one map
  int last_row, last_column;  // outputs of the last row's tiles, and of the last column's: 4, 3 or 2
  explicit WinogradGrid(const ConvShape& s)
      : rows((s.oh + 3) / 4),
        columns((s.ow + 3) / 4),
        last_row(s.oh - 4 * (rows - 1)),
        last_column(s.ow - 4 * (columns - 1)) {}

  int tiles() const { return rows * columns; }
  int row_outputs(int row) const { return row == rows - 1 ? last_row : 4; }
  int column_outputs(int column) const { return column == columns - 1 ? last_column : 4; }

  // Whether a tile of `outputs` lacks a point, by its index in 0, 1, -1, 2, -2, infinity.
  static bool lacks(int outputs, int point) { return (point == 3 && outputs < 3) || (point == 4 && outputs < 4); }
};

// Tiles that are worked on together.
int winograd_chunk(const ConvShape& s, const WinogradForm& form);

struct WinogradScratch {
  size_t v_plane, m_plane, u_plane;
  WinogradScratch(const ConvShape& s, const WinogradForm& form);
  size_t bytes() const { return kPlanes * (v_plane + m_plane) + kPlanes / 3 * u_plane; }
};

}  // namespace int8d
