// Exact Winograd convolution F(4x4, 3x3) in int16 (numerics.md): fewer multiplications for 3x3 windows of stride 1.
//
// The map is cut into tiles of 4x4 outputs; a width or height of 4 k + 2 ends in tiles of 2, F(2, 3), whose points 0,
// 1, -1 and infinity are among those of F(4, 3) (0, 1, -1, 2, -2, infinity), so that both use the same weights. In each
// dimension, with g the window and d the input:
//
//   V = B' d,  U = G g,  576 Y = A' [ (U . V) summed over channels ] A   (both dimensions; 24 Y in one)
//
//   G (all):    6 0 0 | -4 -4 -4 | -4 4 -4 | 1 2 4 | 1 -2 4 | 0 0 6
//   B' of F(4): 4 0 -5 0 1 0 | 0 -4 -4 1 1 0 | 0 4 -4 -1 1 0 | 0 -2 -1 2 1 0 | 0 2 -1 -2 1 0 | 0 4 0 -5 0 1
//   A' of F(4): 1 1 1 1 1 0 | 0 1 -1 2 -2 0 | 0 1 1 4 4 0 | 0 1 -1 8 -8 4
//   B' of F(2): 1 0 -1 0 | 0 1 1 0 | 0 -1 1 0 | 0 -1 0 1       (points 0, 1, -1, infinity)
//   A' of F(2): 4 -3 -3 0 | 0 -3 3 4
//
// |V| <= 17340 and |U| <= 18288 fit int16; sums wrap at 32 bits, and S * 0x38E38E39 = 64 Y exactly where |Y| < 2^25.
#pragma once
#include "pack.h"

namespace int8d {

constexpr int kPlanes = 36;  // a 6x6 tile of transformed values, value by value

// 3x3, stride 1, channels in whole vectors, even maps.
bool winograd_accepts(const ConvShape& s);

// Null where the bound on |Y| can't be proven.
ConvPackedPtr winograd_pack(const ConvDef& def);

// The tiles of all maps of a batch, in rows.
struct WinogradGrid {
  int rows, columns;           // of tiles, in one map
  bool half_row, half_column;  // whether the last row, or column, is of F(2)
  explicit WinogradGrid(const ConvShape& s)
      : rows((s.oh + 3) / 4), columns((s.ow + 3) / 4), half_row(s.oh % 4 != 0), half_column(s.ow % 4 != 0) {}

  int tiles() const { return rows * columns; }
  bool is_half_row(int row) const { return half_row && row == rows - 1; }
  bool is_half_column(int column) const { return half_column && column == columns - 1; }

  // How many of the first `tile` tiles have values in a plane; planes of the points 2 and -2 (`whole`, for the row's
  // and the column's point) are only there for tiles of F(4).
  int before(int tile, bool whole_row, bool whole_column) const {
    const int r = rows - (whole_row && half_row), c = columns - (whole_column && half_column);
    const int image = tile / tiles(), row = tile % tiles() / columns, column = tile % columns;
    return image * r * c + (row >= r ? r * c : row * c + std::min(column, c));
  }
};

// Tiles that are worked on together.
int winograd_chunk(const ConvShape& s);

struct WinogradScratch {
  size_t v_plane, m_plane;  // bytes from plane to plane; odd multiples of 64, or planes would share cache sets
  explicit WinogradScratch(const ConvShape& s);
  size_t bytes() const { return kPlanes * (v_plane + m_plane); }
};

}  // namespace int8d
