// Binds the operators that move or pick elements: strided copies, padding, concatenation, resizing, the largest's
// index.
#include "side.h"

namespace int8d {
namespace {

// In bytes, one an axis of the tensor's own shape: the axes before the last three fold into n.
std::vector<ptrdiff_t> strides(const Side& s) {
  const std::vector<int64_t>& shape = s.tensor->shape;
  const ptrdiff_t inner[] = {static_cast<ptrdiff_t>(s.tensor->element()), s.view.pixel, s.view.row};
  std::vector<ptrdiff_t> found(shape.size());
  ptrdiff_t image = s.view.image;
  for (size_t i = shape.size(), behind = 0; i-- > 0; ++behind) {
    found[i] = behind < 3 ? inner[behind] : image;
    if (behind >= 3) image *= shape[i];
  }
  return found;
}

Work move_work(const Side& in, const Side& out, const MoveOp& move) {
  const std::vector<ptrdiff_t> from = strides(in), to = strides(out);
  MoveShape shape;
  shape.element = in.tensor->element();
  MoveCall call{in.view.data, out.view.data, {}};
  for (size_t i = 0; i < move.axes.size(); ++i) {
    const MoveOp::Axis& axis = move.axes[i];
    call.in += axis.begin * from[axis.from];
    shape.loop(out.tensor->shape[i], axis.step * from[axis.from], to[i]);
  }
  call.shape = simplify(shape);
  const MoveKernel* kernel = move.kernel;
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    kernel->run(share_of(call, worker, workers));
  };
}

// Each row of the output is filled, then takes those elements of the input that lie in it: both by the same worker.
Work pad_work(const Side& in, const Side& out, const PadOp& pad) {
  const size_t rank = pad.before.size(), outer = rank > 2 ? rank - 2 : 0;
  const std::vector<ptrdiff_t> from = strides(in), to = strides(out);
  ptrdiff_t first = 0;
  MoveShape shape;
  for (size_t i = outer; i < rank; ++i) {
    first += pad.before[i] * to[i];
    shape.loop(in.tensor->shape[i], from[i], pad.step[i] * to[i]);
  }
  shape = simplify(shape);
  const PadOp* params = &pad;
  return by_rows(out, [=](int row) {
    uint8_t* start = out.row(row);
    std::memset(start, params->value, out.row_count());
    const uint8_t* source = in.view.data;
    int64_t rest = row;
    for (size_t i = outer; i-- > 0;) {
      const int64_t at = rest % out.tensor->shape[i] - params->before[i], step = params->step[i];
      if (at < 0 || at % step || at / step >= in.tensor->shape[i]) return;
      source += at / step * from[i];
      rest /= out.tensor->shape[i];
    }
    params->kernel->run({source, start + first, shape});
  });
}

Work concat_work(const Program::Impl& program, const Op& op, const Side& out, const ConcatOp& concat) {
  std::vector<Side> in;
  for (int id : op.inputs) in.push_back(side(program, id));
  const ConcatOp* params = &concat;
  const size_t element = out.tensor->element();
  int total = 0;
  for (int extent : concat.extents) total += extent;
  auto copy = [=](size_t i, const uint8_t* from, uint8_t* to, size_t bytes) {
    if (params->plain[i])
      std::memcpy(to, from, bytes);
    else
      params->kernel->run(from, to, bytes, params->tables[i].data());
  };
  return by_rows(out, [=](int row) {
    const int n = row / out.tensor->h, y = row % out.tensor->h, inner = params->inner;
    int at = 0;  // along the axis
    for (size_t i = 0; i < in.size(); ++i) {
      const Tensor& t = *in[i].tensor;
      const int extent = params->extents[i];
      if (params->axis == 0 || params->axis == 1) {  // whole rows
        const int here = (params->axis == 0 ? n / inner % total : y) - at;
        if (here >= 0 && here < extent) {
          const int image = (n / inner / total * extent + here) * inner + n % inner;
          copy(i, params->axis == 0 ? in[i].view.at(image, y, 0) : in[i].view.at(n, here, 0), out.row(row),
               out.row_count() * element);
        }
      } else if (params->axis == 2) {
        copy(i, in[i].row(row), out.view.at(n, y, at), in[i].row_count() * element);
      } else {
        for (int x = 0; x < t.w; ++x)
          copy(i, in[i].view.at(n, y, x), out.view.at(n, y, x) + static_cast<size_t>(at) * element,
               static_cast<size_t>(t.c) * element);
      }
      at += extent;
    }
  });
}

// A reshape between layouts that differ in their halos: bytes in row-major order.
Work reshape_work(const Side& in, const Side& out) {
  const size_t element = out.tensor->element(), from_row = in.row_count() * element, to_row = out.row_count() * element;
  return by_rows(out, [=](int row) {
    uint8_t* to = out.row(row);
    for (size_t done = 0; done < to_row;) {
      const size_t at = static_cast<size_t>(row) * to_row + done, skip = at % from_row;
      const size_t bytes = std::min(to_row - done, from_row - skip);
      std::memcpy(to + done, in.row(static_cast<int>(at / from_row)) + skip, bytes);
      done += bytes;
    }
  });
}

Work resize_work(const Program::Impl& program, const Side& in, const Side& out, const ResizeOp& resize) {
  const Tensor& t = *out.tensor;
  const ResizeCall call{in.view, out.view, t.h, t.w, t.c, resize.rows, resize.columns, resize.nearest, nullptr, 0, 0};
  const ResizeKernel* kernel = resize.kernel;
  const Program::Impl* owner = &program;
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    ResizeCall mine = call;
    mine.scratch = reinterpret_cast<int32_t*>(owner->scratch_of(worker));
    const Range rows = share(out.rows(), worker, workers);
    mine.row_begin = rows.begin, mine.row_end = rows.end;
    resize2d(*kernel, mine);
  };
}

// One index a pixel of the input; indices lie end to end.
Work argmax_work(const Side& in, const Side& out, const ArgMaxOp& argmax) {
  const auto run = argmax.kernel->run;
  auto* indices = reinterpret_cast<int32_t*>(out.view.data);
  return [=](int worker, int workers) {
    const auto w = static_cast<size_t>(in.tensor->w);
    const Range rows = share(in.rows(), worker, workers);
    for (int row = rows.begin; row < rows.end; ++row)
      run(in.row(row), w, static_cast<size_t>(in.tensor->c), indices + static_cast<size_t>(row) * w);
  };
}

}  // namespace

Bound bind_move(const Program::Impl& program, const Op& op) {
  const Side in = side(program, op.inputs[0]), out = side(program, op.output);
  if (const auto* o = std::get_if<MoveOp>(&op.params)) return {o->kernel->name, move_work(in, out, *o)};
  if (const auto* o = std::get_if<PadOp>(&op.params)) return {"pad", pad_work(in, out, *o)};
  if (const auto* o = std::get_if<ConcatOp>(&op.params)) return {"concat", concat_work(program, op, out, *o)};
  if (std::holds_alternative<ReshapeOp>(op.params)) return {"reshape", reshape_work(in, out)};
  if (const auto* o = std::get_if<ResizeOp>(&op.params))
    return {o->nearest ? "resize_nearest" : o->kernel->name, resize_work(program, in, out, *o)};
  if (const auto* o = std::get_if<ArgMaxOp>(&op.params)) return {o->kernel->name, argmax_work(in, out, *o)};
  return {};
}

void lay(const Program::Impl& program, const Fixed& constant) {
  const Side to = side(program, constant.tensor);
  const size_t bytes = to.row_count() * to.tensor->element();
  to.halo.fill(0, 1);
  for (int row = 0; row < to.rows(); ++row)
    std::memcpy(to.row(row), constant.bytes.data() + static_cast<size_t>(row) * bytes, bytes);
}

}  // namespace int8d
