#include "attention_steps.h"

#include "side.h"

namespace int8d {
namespace {

// A step that works vector by vector of the last axis: each(from, to, count) does `count` that lie side by side.
template <typename Each>
Work by_vectors(const Side& in, const Side& out, Each each) {
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    const int w = out.tensor->w;
    const size_t from = static_cast<size_t>(in.view.pixel), to = static_cast<size_t>(out.view.pixel);
    const Range all = share(out.rows() * w, worker, workers);
    for (int at = all.begin, count; at < all.end; at += count) {
      const int row = at / w, x = at % w;
      count = std::min(w - x, all.end - at);
      each(in.row(row) + static_cast<size_t>(x) * from, out.row(row) + static_cast<size_t>(x) * to,
           static_cast<size_t>(count));
    }
  };
}

}  // namespace

Work softmax_work(const Program::Impl& program, const Op& op, const SoftmaxOp& softmax) {
  const Side in = side(program, op.inputs[0]), out = side(program, op.output);
  const SoftmaxParams* params = &softmax.params;
  const auto run = softmax.kernel->run;
  const size_t n = static_cast<size_t>(out.tensor->c);
  return by_vectors(in, out, [=](const uint8_t* from, uint8_t* to, size_t rows) { run({from, to, rows, n, params}); });
}

Work layer_norm_work(const Program::Impl& program, const Op& op, const LayerNormOp& norm) {
  const Side in = side(program, op.inputs[0]), out = side(program, op.output);
  LayerNormParams params = norm.params;
  params.gamma = norm.gamma.data();
  params.beta = norm.beta.data();
  const auto run = norm.kernel->run;
  const size_t n = static_cast<size_t>(out.tensor->c);
  return by_vectors(in, out, [=](const uint8_t* from, uint8_t* to, size_t rows) { run({from, to, rows, n, &params}); });
}

// All products' rows are shared; a worker packs the second operand of those that it has a part of.
Work matmul_work(const Program::Impl& program, const Op& op, const MatmulOp& matmul) {
  const Side a = side(program, op.inputs[0]), b = side(program, op.inputs[1]), out = side(program, op.output);
  const MatmulShape shape = matmul.shape;
  const MatmulParams* params = &matmul.params;
  const auto run = matmul.kernel->run;
  const Program::Impl* owner = &program;
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    const Range rows = share(out.rows() * shape.m, worker, workers);
    for (int at = rows.begin, count; at < rows.end; at += count) {
      const int product = at / shape.m, first = at % shape.m;
      count = std::min(shape.m - first, rows.end - at);
      run({shape, a.row(product), b.row(product), out.row(product), first, first + count, owner->scratch_of(worker),
           params});
    }
  };
}

}  // namespace int8d
