// The builder's operators that move or pick elements.
#include "builder.h"

namespace int8d {

void Builder::concat(const std::string& name, std::span<const int> in, int out, int axis,
                     const std::vector<std::span<const uint8_t>>& tables) {
  const Tensor& y = impl_->tensor(out, name);
  impl_->target(out, y.dtype, name);
  const int rank = static_cast<int>(y.shape.size());
  Impl::require(axis >= 0 && axis < rank, name, "the axis lies outside the shape");
  Impl::require(!in.empty() && tables.size() == in.size(), name, "every input needs its table, or an empty one");
  int64_t extent = 0;
  ConcatOp op{std::max(0, axis + 4 - rank), 1, {}, {}, {}, &lut_kernel(impl_->sketch.isa)};
  for (int i = axis + 1; i < rank - 3; ++i) op.inner *= static_cast<int>(y.shape[static_cast<size_t>(i)]);
  for (size_t i = 0; i < in.size(); ++i) {
    const Tensor& x = impl_->source(in[i], y.dtype, name);
    std::vector<int64_t> shape = x.shape;
    Impl::require(shape.size() == y.shape.size(), name, "all ranks must be the same");
    extent += shape[static_cast<size_t>(axis)];
    op.extents.push_back(static_cast<int>(shape[static_cast<size_t>(axis)]));
    shape[static_cast<size_t>(axis)] = y.shape[static_cast<size_t>(axis)];
    Impl::require(shape == y.shape, name, "shapes may differ in the axis of concatenation only");
    Impl::require(tables[i].empty() || (tables[i].size() == 256 && y.dtype == Dtype::u8), name,
                  "a table has 256 entries, and is for int8 only");
    op.plain.push_back(tables[i].empty());
    op.tables.emplace_back();
    std::copy(tables[i].begin(), tables[i].end(), op.tables.back().begin());
  }
  Impl::require(extent == y.shape[static_cast<size_t>(axis)], name, "the inputs' extents must sum to the output's");
  impl_->push(name, {in.begin(), in.end()}, out, std::move(op));
}

void Builder::reshape(const std::string& name, int in, int out) {
  const Tensor& y = impl_->tensor(out, name);
  const Tensor& x = impl_->source(in, y.dtype, name);
  impl_->target(out, y.dtype, name);
  Impl::require(x.count() == y.count(), name, "input and output must have the same number of elements");
  Impl::require(x.zero_point == y.zero_point, name, "input and output must have the same quantization");
  impl_->push(name, {in}, out, ReshapeOp{});
}

namespace {

// Where the output's elements are a run of the input's, the first of it, else -1.
int64_t find_run(const Tensor& in, const Tensor& out, const std::vector<MoveOp::Axis>& axes) {
  std::vector<ptrdiff_t> from(in.shape.size(), 1);
  for (size_t i = from.size(); i-- > 1;) from[i - 1] = from[i] * in.shape[i];
  int64_t first = 0;
  ptrdiff_t to = 1;
  bool run = true;
  for (size_t i = axes.size(); i-- > 0; to *= out.shape[i]) {
    first += axes[i].begin * from[axes[i].from];
    run &= out.shape[i] == 1 || axes[i].step * from[axes[i].from] == to;
  }
  return run ? first : -1;
}

}  // namespace

void Builder::Impl::push_move(const std::string& name, int in, int out, std::vector<MoveOp::Axis> axes) {
  const Tensor &x = tensor(in, name), &y = tensor(out, name);
  require(x.zero_point == y.zero_point, name, "input and output must have the same quantization");
  for (size_t i = 0; i < axes.size(); ++i) {
    const int64_t begin = axes[i].begin, last = begin + (y.shape[i] - 1) * axes[i].step, extent = x.shape[axes[i].from];
    require(begin >= 0 && begin < extent && last >= 0 && last < extent, name, "an element lies outside the input");
  }
  const int64_t run = find_run(x, y, axes);
  push(name, {in}, out, MoveOp{std::move(axes), run, &move_kernel(sketch.isa)});
}

void Builder::transpose(const std::string& name, int in, int out, std::span<const int> axes) {
  const auto [x, y] = impl_->same_kind(in, out, name);
  Impl::require(axes.size() == x.shape.size(), name, "axes must name each axis of the input once");
  std::vector<bool> named(axes.size());
  std::vector<MoveOp::Axis> moved;
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto axis = static_cast<size_t>(axes[i]);
    Impl::require(axis < axes.size() && !named[axis], name, "axes must name each axis of the input once");
    Impl::require(y.shape[i] == x.shape[axis], name, "the output's shape does not follow from axes");
    named[axis] = true;
    moved.push_back({axis, 0, 1});
  }
  impl_->push_move(name, in, out, std::move(moved));
}

void Builder::slice(const std::string& name, int in, int out, std::span<const int64_t> begin,
                    std::span<const int64_t> step) {
  const auto [x, y] = impl_->same_kind(in, out, name);
  Impl::require(begin.size() == x.shape.size() && step.size() == begin.size(), name, "one value an axis is needed");
  std::vector<MoveOp::Axis> moved;
  for (size_t i = 0; i < begin.size(); ++i) {
    Impl::require(step[i] != 0 && std::abs(step[i]) < int64_t{1} << 31, name, "a step of 0, or too large");
    moved.push_back({i, begin[i], step[i]});
  }
  impl_->push_move(name, in, out, std::move(moved));
}

void Builder::expand(const std::string& name, int in, int out) {
  const auto [x, y] = impl_->same_kind(in, out, name);
  std::vector<MoveOp::Axis> moved;
  for (size_t i = 0; i < x.shape.size(); ++i) {
    Impl::require(x.shape[i] == 1 || x.shape[i] == y.shape[i], name, "only axes of extent 1 can be repeated");
    moved.push_back({i, 0, x.shape[i] == y.shape[i] ? 1 : 0});
  }
  impl_->push_move(name, in, out, std::move(moved));
}

void Builder::pad(const std::string& name, int in, int out, std::span<const int64_t> before,
                  std::span<const int64_t> after, std::span<const int64_t> interior, int value) {
  const auto [x, y] = impl_->same_kind(in, out, name);
  const size_t rank = x.shape.size();
  Impl::require(x.dtype == Dtype::u8 && x.zero_point == y.zero_point, name,
                "input and output must be int8 of the same quantization");
  Impl::require(before.size() == rank && after.size() == rank && interior.size() == rank, name,
                "one value an axis is needed");
  Impl::require(value >= 0 && value <= 255, name, "the value must lie in 0..255");
  PadOp op{{}, {}, static_cast<uint8_t>(value), &move_kernel(impl_->sketch.isa)};
  for (size_t i = 0; i < rank; ++i) {
    constexpr int64_t kMost = int64_t{1} << 31;
    for (int64_t count : {before[i], after[i], interior[i]})
      Impl::require(count >= 0 && count <= kMost, name, "a count is negative or too large");
    // Of at most 2^31 elements, with as many between them: less than 2^63.
    Impl::require(y.shape[i] == before[i] + x.shape[i] + (x.shape[i] - 1) * interior[i] + after[i], name,
                  "the output's shape does not follow from the counts");
    op.before.push_back(before[i]);
    op.step.push_back(interior[i] + 1);
  }
  impl_->push(name, {in}, out, std::move(op));
}

void Builder::resize2d(const std::string& name, int in, int out, std::span<const int32_t> rows,
                       std::span<const int32_t> columns) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(x.shape.size() == 4 && y.shape.size() == 4, name, "input and output must be 4-D, NHWC");
  Impl::require(x.n == y.n && x.c == y.c, name, "the batch or the channels change");
  Impl::require(x.zero_point == y.zero_point, name, "input and output must have the same quantization");
  ResizeOp op{{}, {}, true, &resize_kernel(impl_->sketch.isa)};
  auto read = [&](std::span<const int32_t> table, int count, int extent) {
    Impl::require(table.size() == 3 * static_cast<size_t>(count), name, "three values a row or column are needed");
    std::vector<Blend> blends;
    for (size_t i = 0; i < table.size(); i += 3) {
      const Blend b{table[i], table[i + 1], table[i + 2]};
      Impl::require(b.low >= 0 && b.low < extent && b.high >= 0 && b.high < extent && b.weight >= 0 && b.weight <= 2048,
                    name, "an index lies outside the map, or a weight outside 0..2048");
      op.nearest &= b.weight == 0;
      blends.push_back(b);
    }
    return blends;
  };
  op.rows = read(rows, y.h, x.h);
  op.columns = read(columns, y.w, x.w);
  impl_->push(name, {in}, out, std::move(op));
}

void Builder::argmax(const std::string& name, int in, int out) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::s32, name);
  Impl::require(!x.shape.empty() && y.count() * x.c == x.count(), name,
                "the output has the input's shape without the last axis");
  impl_->push(name, {in}, out, ArgMaxOp{&argmax_kernel(impl_->sketch.isa)});
}

void Builder::constant(const std::string& name, int out, std::span<const uint8_t> bytes) {
  const Tensor& y = impl_->tensor(out, name);
  impl_->target(out, y.dtype, name);
  Impl::require(bytes.size() == y.bytes(), name, "the value has the wrong size");
  impl_->sketch.constants.push_back({name, out, {bytes.begin(), bytes.end()}});
  impl_->produced[static_cast<size_t>(out)] = true;
}

}  // namespace int8d
