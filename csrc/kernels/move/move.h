// A strided copy of elements of 1 or 4 bytes: transposition, slicing, repetition, and placing with gaps.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

inline constexpr int kMoveRank = 8;

// Loops, the outermost first. Strides are in bytes; an input's may be 0 (repeat) or negative (flip).
struct MoveShape {
  size_t element = 1;
  int rank = 0;
  std::array<int64_t, kMoveRank> count{};
  std::array<ptrdiff_t, kMoveRank> in{}, out{};

  void loop(int64_t n, ptrdiff_t from, ptrdiff_t to) {
    count[static_cast<size_t>(rank)] = n;
    in[static_cast<size_t>(rank)] = from;
    out[static_cast<size_t>(rank++)] = to;
  }
};

// No two elements of the output are the same. Inputs are read as View says: up to kOverread bytes too far.
struct MoveCall {
  const uint8_t* in;
  uint8_t* out;
  MoveShape shape;
};

struct MoveKernel {
  const char* name;
  Isa isa;
  void (*run)(const MoveCall&);
};

// The same copy in fewer loops: without those of one turn, and two as one where they run on in both.
MoveShape simplify(const MoveShape& shape);
// A worker's share of a copy; its count is 0 where there is none.
MoveCall share_of(const MoveCall& call, int worker, int workers);

std::span<const MoveKernel> move_kernels();
const MoveKernel& move_kernel(Isa);

}  // namespace int8d
