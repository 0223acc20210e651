// Binds an operator to its addresses: the work that each worker does at run time.
#include <algorithm>
#include <cstring>

#include "../kernels/quantize/quantize.h"
#include "attention_steps.h"
#include "side.h"

namespace int8d {
namespace {

// Copies elements in row-major order between two layouts of the same count; flip is 0x80 to change u8 and s8.
struct Gather {
  const uint8_t* from;  // contiguous
  uint8_t flip;
  void row(size_t at, uint8_t* to, size_t bytes) const {
    if (!flip) {
      std::memcpy(to, from + at, bytes);
      return;
    }
    for (size_t i = 0; i < bytes; ++i) to[i] = from[at + i] ^ flip;
  }
};

const uint8_t* table_of(const Op* taker) {
  const LutOp* lut = taker ? std::get_if<LutOp>(&taker->params) : nullptr;
  return lut ? lut->table.data() : nullptr;
}

Work conv_work(const Program::Impl& program, const Op& op, const ConvOp& conv, const Op* taker, Split split) {
  const Side in = side(program, op.inputs[0]), out = side(program, taker ? taker->output : op.output);
  ConvCall call;
  call.packed = conv.packed.get();
  call.in = in.view;
  call.out = out.view;
  call.table = table_of(taker);
  AddParams params;
  const AddOp* add = taker ? std::get_if<AddOp>(&taker->params) : nullptr;
  if (add) {
    params = add->params;
    const bool first = taker->inputs[0] == op.output;
    if (!first) {  // the sum commutes; the convolution's result is the kernel's first operand
      std::swap(params.zp1, params.zp2);
      std::swap(params.f1, params.f2);
    }
    call.residual = side(program, taker->inputs[first ? 1 : 0]).view;
  }
  const bool summed = add != nullptr;
  const ConvKernel* kernel = conv.kernel;
  const int rows = kernel->rows(conv.shape), panels = kernel->panels(conv.shape);
  const bool split_panels = split == Split::panels;
  const Program::Impl* owner = &program;
  const size_t index = static_cast<size_t>(&op - program.sketch.ops.data());
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    ConvCall mine = call;
    if (summed) mine.add = &params;
    mine.scratch = owner->scratch_of(worker);
    mine.ahead = owner->ahead[index].of(worker, workers);
    const Range r = split_panels ? Range{0, rows} : share(rows, worker, workers, 2);
    const Range p = split_panels ? share(panels, worker, workers) : Range{0, panels};
    mine.row_begin = r.begin;
    mine.row_end = r.end;
    mine.panel_begin = p.begin;
    mine.panel_end = p.end;
    if (r.begin < r.end && p.begin < p.end) kernel->run(mine);
  };
}

Work depthwise_work(const Program::Impl& program, const Op& op, const DepthwiseOp& dw, const Op* taker) {
  const Side in = side(program, op.inputs[0]), out = side(program, taker ? taker->output : op.output);
  const DepthwiseCall call{dw.packed.get(), in.view, out.view, table_of(taker), 0, 0};
  const DepthwiseKernel* kernel = dw.kernel;
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    DepthwiseCall mine = call;
    const Range rows = share(out.rows(), worker, workers, 2);
    mine.row_begin = rows.begin;
    mine.row_end = rows.end;
    kernel->run(mine);
  };
}

Work linear_work(const Program::Impl& program, const Op& op, const LinearOp& linear, const Op* taker) {
  const Side in = side(program, op.inputs[0]), out = side(program, taker ? taker->output : op.output);
  const LinearKernel* kernel = linear.kernel;
  const LutOp* lut = taker ? std::get_if<LutOp>(&taker->params) : nullptr;
  const ConvPacked* packed = linear.packed.get();
  const int panels = kernel->panels(out.tensor->c);
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    const Range p = share(panels, worker, workers);
    if (p.begin == p.end) return;
    const int w = out.tensor->w, c = out.tensor->c, first = p.begin * kernel->panel;
    const size_t features = static_cast<size_t>(std::min(c, p.end * kernel->panel) - first);
    for (int row = 0; row < out.rows(); ++row) {  // a row's pixels are contiguous, halo or not
      uint8_t* to = out.row(row);
      kernel->run({packed, in.row(row), to, 0, w, p.begin, p.end});
      if (!lut) continue;
      to += first;
      for (int x = 0; x < w; ++x, to += c) lut->kernel->run(to, to, features, lut->table.data());
    }
  };
}

Work pool_work(const Program::Impl& program, const Op& op, const ConvShape& shape, void (*run)(const PoolCall&),
               const AvgPoolParams& params) {
  const Side in = side(program, op.inputs[0]), out = side(program, op.output);
  const bool average = params.multipliers != nullptr;
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    // A global pool has one pixel: its channels are split instead.
    const bool split_channels = out.rows() < workers;
    const Range rows = split_channels ? Range{0, out.rows()} : share(out.rows(), worker, workers);
    const Range channels = split_channels ? share(shape.oc, worker, workers, 64) : Range{0, shape.oc};
    run({shape, in.view, out.view, average ? &params : nullptr, rows.begin, rows.end, channels.begin, channels.end});
  };
}

Work add_work(const Program::Impl& program, const Op& op, const AddOp& add) {
  const Side a = side(program, op.inputs[0]), b = side(program, op.inputs[1]), out = side(program, op.output);
  const AddKernel* kernel = add.kernel;
  const AddParams* params = &add.params;
  return by_rows(out, [=](int row) { kernel->run(a.row(row), b.row(row), out.row(row), out.row_count(), *params); });
}

Work mul_work(const Program::Impl& program, const Op& op, const MulOp& mul) {
  const Side a = side(program, op.inputs[0]), b = side(program, op.inputs[1]), out = side(program, op.output);
  const MulKernel* kernel = mul.kernel;
  const MulParams* params = &mul.params;
  const bool gate = b.rows() != out.rows() || b.row_count() != out.row_count();
  const auto joined = [](const Side& s) { return static_cast<size_t>(s.view.row) == s.row_count(); };
  const bool whole = joined(a) && joined(out) && (gate || joined(b));  // rows of an image are one run of pixels
  return [=](int worker, int workers) {
    out.halo.fill(worker, workers);
    const size_t w = static_cast<size_t>(out.tensor->w), c = static_cast<size_t>(out.tensor->c);
    const int h = out.tensor->h;
    const Range rows = share(out.rows(), worker, workers);
    for (int row = rows.begin, count; row < rows.end; row += count) {
      count = whole ? std::min(h - row % h, rows.end - row) : 1;
      kernel->run({a.row(row), gate ? b.row(row / h) : b.row(row), out.row(row), count * w, c, gate ? 0 : c, params});
    }
  };
}

// In elements, of which a core does 8 or more a cycle. Sharing less than this costs more, at the barrier, than it
// saves.
constexpr int64_t kSmall = 8192;

int64_t macs(const ConvShape& s) { return int64_t{1} * s.batch * s.oh * s.ow * s.oc * s.kh * s.kw * (s.ic / s.groups); }

}  // namespace

Step bind(const Program::Impl& program, const Op& op, const Op* taker) {
  const Side in = side(program, op.inputs[0]), out = side(program, op.output);
  StepInfo info{{op.name}, "", 0, Split::automatic};
  if (taker) info.names.push_back(taker->name);
  auto step = [&](const char* kernel, Work work, int64_t count = 0) {
    info.kernel = kernel;
    info.macs = count;
    const int64_t cost = std::max({count / 5, in.tensor->count(), out.tensor->count()});
    return Step{info, std::move(work), 0, cost <= kSmall};
  };
  auto with_weights = [](Step made, const ConvPacked& packed, bool by_panels) {
    const std::span<const uint8_t> weights = conv_packed_weights(packed);
    made.weights = {weights.data(), weights.size(), by_panels};
    return made;
  };
  if (const auto* o = std::get_if<ConvOp>(&op.params)) {
    const int panels = o->kernel->panels(o->shape), workers = program.sketch.threads;
    const Split split = resolve_split(op.choice.split, o->shape, panels, workers);
    if (workers > 1) info.split = split;
    return with_weights(step(o->kernel->name, conv_work(program, op, *o, taker, split), macs(o->shape)), *o->packed,
                        split == Split::panels);
  }
  if (const auto* o = std::get_if<DepthwiseOp>(&op.params))
    return step(o->kernel->name, depthwise_work(program, op, *o, taker), macs(o->shape));
  if (const auto* o = std::get_if<LinearOp>(&op.params)) {
    Step linear = step(o->kernel->name, linear_work(program, op, *o, taker), in.tensor->count() * out.tensor->c);
    linear.small |= o->kernel->panels(out.tensor->c) == 1;  // can't be shared
    return linear;
  }
  if (const auto* o = std::get_if<MaxPoolOp>(&op.params))
    return step(o->kernel->max_name, pool_work(program, op, o->shape, o->kernel->max, {}));
  if (const auto* o = std::get_if<AvgPoolOp>(&op.params)) {
    AvgPoolParams params = o->params;
    params.multipliers = o->multipliers.data();
    return step(o->kernel->avg_name, pool_work(program, op, o->shape, o->kernel->avg, params));
  }
  if (const auto* o = std::get_if<AddOp>(&op.params)) return step(o->kernel->name, add_work(program, op, *o));
  if (const auto* o = std::get_if<MulOp>(&op.params)) return step(o->kernel->name, mul_work(program, op, *o));
  if (const auto* o = std::get_if<LutOp>(&op.params)) {
    const uint8_t* table = o->table.data();
    const auto run = o->kernel->run;
    return step(o->kernel->name,
                by_rows(out, [=](int row) { run(in.row(row), out.row(row), out.row_count(), table); }));
  }
  if (Bound move = bind_move(program, op); move.work) return step(move.kernel, std::move(move.work));
  if (const auto* o = std::get_if<QuantizeOp>(&op.params)) {
    const float scale = o->scale;
    return step("quantize_u8", by_rows(out, [=](int row) {
                  quantize_u8(reinterpret_cast<const float*>(in.row(row)), out.row(row), out.row_count(), scale,
                              out.tensor->zero_point);
                }));
  }
  if (const auto* o = std::get_if<DequantizeOp>(&op.params)) {
    const float scale = o->scale;
    return step("dequantize_u8", by_rows(out, [=](int row) {
                  dequantize_u8(in.row(row), reinterpret_cast<float*>(out.row(row)), out.row_count(), scale,
                                in.tensor->zero_point);
                }));
  }
  if (const auto* o = std::get_if<SoftmaxOp>(&op.params)) return step(o->kernel->name, softmax_work(program, op, *o));
  if (const auto* o = std::get_if<LayerNormOp>(&op.params))
    return step(o->kernel->name, layer_norm_work(program, op, *o));
  const auto& o = std::get<MatmulOp>(op.params);
  return step(o.kernel->name, matmul_work(program, op, o), out.tensor->count() * o.shape.k);
}

Work copy_in(const Program::Impl& program, size_t input) {
  const Border border = program.sketch.inputs[input];
  const Side to = side(program, border.tensor);
  const Program::Impl* p = &program;
  const size_t bytes = to.row_count() * to.tensor->element();
  return by_rows(to, [=](int row) {
    const Gather gather{static_cast<const uint8_t*>(p->inputs[input]), static_cast<uint8_t>(border.flip ? 0x80 : 0)};
    gather.row(static_cast<size_t>(row) * bytes, to.row(row), bytes);
  });
}

Work copy_out(const Program::Impl& program, size_t output) {
  const Border border = program.sketch.outputs[output];
  const Side from = side(program, border.tensor);
  const Program::Impl* p = &program;
  const size_t bytes = from.row_count() * from.tensor->element();
  return [=](int worker, int workers) {
    const Range rows = share(from.rows(), worker, workers);
    for (int row = rows.begin; row < rows.end; ++row) {
      const Gather gather{from.row(row), static_cast<uint8_t>(border.flip ? 0x80 : 0)};
      gather.row(0, static_cast<uint8_t*>(p->outputs[output]) + static_cast<size_t>(row) * bytes, bytes);
    }
  };
}

}  // namespace int8d
