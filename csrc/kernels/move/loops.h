// What the fast kernels share: the two innermost loops are found a form of their own, the others run around it. A
// template over the forms; in an unnamed namespace, as each instruction set has a file of its own.
//
// Forms: runs (contiguous in both), fill (one element repeated), transpose (one loop is contiguous in the input,
// another one in the output), and element by element what is none of these.
#pragma once
#include <cstring>

#include "move.h"

namespace int8d {
namespace {

// rows x columns; `columns` is the output's innermost loop.
struct Plane {
  const uint8_t* in;
  uint8_t* out;
  int64_t rows;
  ptrdiff_t in_row, out_row;
  int64_t columns;
  ptrdiff_t in_column, out_column;
};

template <typename T>
void each_element(const Plane& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const uint8_t* in = p.in + r * p.in_row;
    uint8_t* out = p.out + r * p.out_row;
    for (int64_t c = 0; c < p.columns; ++c, in += p.in_column, out += p.out_column) {
      T element;
      std::memcpy(&element, in, sizeof element);
      std::memcpy(out, &element, sizeof element);
    }
  }
}

template <typename T>
void fill(const Plane& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    T element;
    std::memcpy(&element, p.in + r * p.in_row, sizeof element);
    uint8_t* out = p.out + r * p.out_row;
    if constexpr (sizeof(T) == 1) {
      std::memset(out, element, static_cast<size_t>(p.columns));
    } else {
      for (int64_t c = 0; c < p.columns; ++c) std::memcpy(out + c * sizeof(T), &element, sizeof element);
    }
  }
}

// Where a run is this long, the C library's copy is the best.
constexpr int64_t kLongRun = 1024;

void long_runs(const Plane& p, int64_t bytes) {
  for (int64_t r = 0; r < p.rows; ++r)
    std::memcpy(p.out + r * p.out_row, p.in + r * p.in_row, static_cast<size_t>(bytes));
}

// runs(plane, bytes); transpose1 and transpose4(plane), whose rows are contiguous in the input.
template <typename Forms>
void move(const MoveCall& call) {
  const MoveShape& s = call.shape;
  for (int i = 0; i < s.rank; ++i)
    if (s.count[static_cast<size_t>(i)] == 0) return;
  const auto element = static_cast<ptrdiff_t>(s.element);
  const bool bytes = element == 1;
  const size_t last = static_cast<size_t>(s.rank) - 1;
  const bool dense_out = s.out[last] == element;
  size_t second = last;  // the loop around the last one, `last` where there is none
  if (last > 0) second = last - 1;
  bool transposed = false;
  if (dense_out && s.in[last] != element && s.in[last] != 0)
    for (size_t i = 0; i < last; ++i)
      if (s.in[i] == element) second = i, transposed = true;
  Plane p{call.in, call.out, 1, 0, 0, s.count[last], s.in[last], s.out[last]};
  if (second != last) p.rows = s.count[second], p.in_row = s.in[second], p.out_row = s.out[second];
  std::array<int64_t, kMoveRank> at{};
  while (true) {
    if (dense_out && s.in[last] == element)
      p.columns* element >= kLongRun ? long_runs(p, p.columns * element) : Forms::runs(p, p.columns * element);
    else if (dense_out && s.in[last] == 0)
      bytes ? fill<uint8_t>(p) : fill<uint32_t>(p);
    else if (transposed)
      bytes ? Forms::transpose1(p) : Forms::transpose4(p);
    else
      bytes ? each_element<uint8_t>(p) : each_element<uint32_t>(p);
    size_t axis = last;  // the next turn of the outer loops
    while (axis-- > 0) {
      if (axis == second) continue;
      p.in += s.in[axis], p.out += s.out[axis];
      if (++at[axis] < s.count[axis]) break;
      p.in -= s.in[axis] * s.count[axis], p.out -= s.out[axis] * s.count[axis];
      at[axis] = 0;
    }
    if (axis == SIZE_MAX) return;
  }
}

}  // namespace
}  // namespace int8d
