// What the steps are made from: a tensor's bytes and halo, and a worker's share of its rows.
#pragma once
#include <algorithm>
#include <cstring>

#include "plan.h"

namespace int8d {

struct Range {
  int begin, end;
};

// A worker's share of `count` things, in whole multiples of `grain` but for the last.
inline Range share(int count, int worker, int workers, int grain = 1) {
  const int64_t grains = (count + grain - 1) / grain;
  auto bound = [&](int w) { return static_cast<int>(std::min<int64_t>(count, grains * w / workers * grain)); };
  return {bound(worker), bound(worker + 1)};
}

// Fills the halo of a tensor with its zero point. Slots are shared over time, so it must be done at every run.
struct Halo {
  View view;
  int n, h, w, c, zero_point;
  Place place;

  void fill(int worker, int workers) const {
    if (!place.halo()) return;
    const ptrdiff_t width = static_cast<ptrdiff_t>(w + place.left + place.right) * c;
    const Range rows = share(n * (h + place.top + place.bottom), worker, workers);
    for (int row = rows.begin; row < rows.end; ++row) {
      const int image = row / (h + place.top + place.bottom), y = row % (h + place.top + place.bottom) - place.top;
      uint8_t* start = view.at(image, y, -place.left);
      if (y < 0 || y >= h) {
        std::memset(start, zero_point, static_cast<size_t>(width));
      } else {
        std::memset(start, zero_point, static_cast<size_t>(place.left) * c);
        std::memset(view.at(image, y, w), zero_point, static_cast<size_t>(place.right) * c);
      }
    }
  }
};

// All that a step needs to know of a tensor.
struct Side {
  const Tensor* tensor;
  View view;
  Halo halo;

  int rows() const { return tensor->n * tensor->h; }
  size_t row_count() const { return static_cast<size_t>(tensor->w) * tensor->c; }
  uint8_t* row(int r) const { return view.at(r / tensor->h, r % tensor->h, 0); }
};

inline Side side(const Program::Impl& program, int id) {
  const Tensor& t = program.sketch.tensors[static_cast<size_t>(id)];
  const Place& p = program.places[static_cast<size_t>(id)];
  const View view = program.view(id);
  return {&t, view, {view, t.n, t.h, t.w, t.c * static_cast<int>(t.element()), t.zero_point, p}};
}

// A step that works row by row: each(row) does one row of the output.
template <typename Each>
Work by_rows(const Side& out, Each each) {
  return [out, each](int worker, int workers) {
    out.halo.fill(worker, workers);
    const Range rows = share(out.rows(), worker, workers);
    for (int row = rows.begin; row < rows.end; ++row) each(row);
  };
}

}  // namespace int8d
