#include "plan.h"

#include <algorithm>
#include <set>

#include "arena.h"

namespace int8d {
namespace {

// Readers of each tensor: operators and outputs.
std::vector<int> count_readers(const Sketch& sketch) {
  std::vector<int> readers(sketch.tensors.size());
  for (const Op& op : sketch.ops)
    for (int input : op.inputs) ++readers[static_cast<size_t>(input)];
  for (const Border& output : sketch.outputs) ++readers[static_cast<size_t>(output.tensor)];
  return readers;
}

void widen(Place& place, const ConvShape& s) {
  // What the last window needs to the right and below may be less than the padding, and never less than nothing.
  place.top = std::max(place.top, s.pad_top);
  place.left = std::max(place.left, s.pad_left);
  place.bottom = std::max(place.bottom, (s.oh - 1) * s.sh - s.pad_top + (s.kh - 1) * s.dh + 1 - s.ih);
  place.right = std::max(place.right, (s.ow - 1) * s.sw - s.pad_left + (s.kw - 1) * s.dw + 1 - s.iw);
}

std::vector<Place> find_places(const Sketch& sketch) {
  std::vector<Place> places(sketch.tensors.size());
  for (size_t i = 0; i < places.size(); ++i) places[i].root = static_cast<int>(i);
  for (const Op& op : sketch.ops) {
    const auto in = static_cast<size_t>(op.inputs[0]);
    if (const auto* conv = std::get_if<ConvOp>(&op.params)) widen(places[in], conv->shape);
    if (const auto* dw = std::get_if<DepthwiseOp>(&op.params)) widen(places[in], dw->shape);
  }
  for (const Op& op : sketch.ops) {
    const auto in = static_cast<size_t>(op.inputs[0]);
    Place &from = places[in], &to = places[static_cast<size_t>(op.output)];
    int64_t first = 0;
    if (from.halo() || to.halo() || !is_run(op, first)) continue;
    to.root = from.root;
    to.shift = from.shift + static_cast<size_t>(first) * sketch.tensors[in].element();
  }
  return places;
}

size_t slot_bytes(const Tensor& t, const Place& p) {
  const size_t rows = static_cast<size_t>(t.h + p.top + p.bottom),
               columns = static_cast<size_t>(t.w + p.left + p.right);
  return static_cast<size_t>(t.n) * rows * columns * t.c * t.element() + kOverread;
}

// Steps are numbered: 0 is the copying in, op i is i + 1, the copying out comes last.
size_t place_all(const Sketch& sketch, const std::vector<int>& into, std::vector<Place>& places) {
  std::vector<Lifetime> lives(places.size());
  for (size_t i = 0; i < places.size(); ++i) lives[i] = {slot_bytes(sketch.tensors[i], places[i]), INT32_MAX, -1};
  auto touch = [&](int tensor, int step) {
    Lifetime& life = lives[static_cast<size_t>(places[static_cast<size_t>(tensor)].root)];
    life.first = std::min(life.first, step);
    life.last = std::max(life.last, step);
  };
  std::set<int> inner;  // what stays in registers: results of the fused
  for (size_t i = 0; i < sketch.ops.size(); ++i)
    if (into[i] >= 0) inner.insert(sketch.ops[i].output);
  for (const Border& input : sketch.inputs) touch(input.tensor, 0);
  for (size_t i = 0; i < sketch.ops.size(); ++i) {
    const int step = (into[i] >= 0 ? into[i] : static_cast<int>(i)) + 1;  // a fused one runs with its taker
    for (int input : sketch.ops[i].inputs)
      if (!inner.contains(input)) touch(input, step);
    if (into[i] < 0) touch(sketch.ops[i].output, step);
  }
  for (const Border& output : sketch.outputs) touch(output.tensor, static_cast<int>(sketch.ops.size()) + 1);
  for (const Fixed& constant : sketch.constants)  // laid down once, to be there at every run
    for (int step : {0, static_cast<int>(sketch.ops.size()) + 1}) touch(constant.tensor, step);

  std::vector<size_t> used;
  std::vector<Lifetime> packed;
  for (size_t i = 0; i < lives.size(); ++i)
    if (lives[i].last >= 0) {
      used.push_back(i);
      packed.push_back(lives[i]);
    }
  const size_t total = plan_arena(packed);
  for (size_t i = 0; i < used.size(); ++i) {
    const Tensor& t = sketch.tensors[used[i]];
    Place& p = places[used[i]];
    const size_t columns = static_cast<size_t>(t.w + p.left + p.right);
    p.offset = packed[i].offset + (p.top * columns + p.left) * t.c * t.element();
  }
  for (Place& p : places) p.offset = places[static_cast<size_t>(p.root)].offset + p.shift;
  return total + kOverread;
}

// Small steps in a row (the layers of a squeeze-and-excite's gate) meet at one barrier, behind the last of them.
void join_small(std::vector<Step>& steps) {
  for (size_t i = 0; i + 1 < steps.size(); ++i) steps[i].meets = !(steps[i].small && steps[i + 1].small);
}

size_t weights(const Op& op) {
  if (const auto* conv = std::get_if<ConvOp>(&op.params)) return conv_packed_bytes(*conv->packed);
  if (const auto* dw = std::get_if<DepthwiseOp>(&op.params)) return depthwise_packed_bytes(*dw->packed);
  if (const auto* linear = std::get_if<LinearOp>(&op.params)) return conv_packed_bytes(*linear->packed);
  return 0;
}

// Bytes that a worker needs beside the arena.
size_t scratch(const Sketch& sketch, const Op& op) {
  if (const auto* conv = std::get_if<ConvOp>(&op.params)) return conv->kernel->scratch(conv->shape);
  if (const auto* matmul = std::get_if<MatmulOp>(&op.params)) return matmul->kernel->scratch(matmul->shape);
  if (std::holds_alternative<ResizeOp>(op.params)) {
    const Tensor& out = sketch.tensors[static_cast<size_t>(op.output)];
    return 2 * static_cast<size_t>(out.w) * static_cast<size_t>(out.c) * sizeof(int32_t);  // resize.h
  }
  return 0;
}

// While a convolution computes, it has the next step's weights fetched: not more than L2 can hold beside its own.
// `ops`: the operator of each step, or `count` where it has none.
std::vector<Weights> find_ahead(const std::vector<Step>& steps, const std::vector<size_t>& ops, size_t count) {
  constexpr size_t kMost = 768 * 1024;
  std::vector<Weights> ahead(count);
  Weights next;
  for (size_t i = steps.size(); i-- > 0;) {
    if (ops[i] < count) ahead[ops[i]] = next;
    if (!steps[i].weights.data) continue;
    next = steps[i].weights;
    next.bytes = std::min(next.bytes, kMost);
  }
  return ahead;
}

}  // namespace

// A convolution whose only reader is an addition or a table (a linear layer: a table) can be computed where that one
// stands, which then costs no pass of its own. The bytes are the same (numerics.md, 7).
std::vector<int> find_takers(const Sketch& sketch) {
  const std::vector<int> readers = count_readers(sketch);
  std::vector<int> producer(sketch.tensors.size(), -1), takers(sketch.ops.size(), -1);
  for (size_t i = 0; i < sketch.ops.size(); ++i) {
    const Op& op = sketch.ops[i];
    producer[static_cast<size_t>(op.output)] = static_cast<int>(i);
    const bool sum = std::holds_alternative<AddOp>(op.params);
    if (!sum && !std::holds_alternative<LutOp>(op.params)) continue;
    for (int input : op.inputs) {
      const int from = producer[static_cast<size_t>(input)];
      if (from < 0 || readers[static_cast<size_t>(input)] != 1) continue;
      const Op& source = sketch.ops[static_cast<size_t>(from)];
      const bool conv = std::holds_alternative<ConvOp>(source.params);
      if (conv || (!sum && (std::holds_alternative<DepthwiseOp>(source.params) ||
                            std::holds_alternative<LinearOp>(source.params))))
        takers[static_cast<size_t>(from)] = static_cast<int>(i);
    }
  }
  return takers;
}

std::vector<int> find_fusions(const Sketch& sketch, const std::vector<int>& takers) {
  std::vector<int> into(sketch.ops.size(), -1), taken(sketch.ops.size(), -1);  // taken: by taker
  for (size_t i = 0; i < sketch.ops.size(); ++i) {
    if (takers[i] < 0 || !sketch.ops[i].choice.fused) continue;
    const auto taker = static_cast<size_t>(takers[i]);
    if (taken[taker] >= 0) into[static_cast<size_t>(taken[taker])] = -1;  // of two, the later one
    taken[taker] = static_cast<int>(i);
    into[i] = takers[i];
  }
  return into;
}

bool is_run(const Op& op, int64_t& first) {
  const auto* move = std::get_if<MoveOp>(&op.params);
  first = move ? move->run : 0;
  return std::holds_alternative<ReshapeOp>(op.params) || (move && move->run >= 0);
}

std::unique_ptr<Program::Impl> plan(Sketch sketch) {
  const std::vector<int> into = find_fusions(sketch, find_takers(sketch));
  std::vector<Place> places = find_places(sketch);
  const size_t bytes = place_all(sketch, into, places);
  std::vector<const Op*> fused(sketch.ops.size(), nullptr);  // by taker: the convolution that it takes over
  auto program = std::make_unique<Program::Impl>(std::move(sketch), std::move(places), bytes);
  const Sketch& s = program->sketch;
  for (const Fixed& constant : s.constants) {
    lay(*program, constant);
    program->infos.push_back({{constant.name}, "constant", 0, Split::automatic});
  }
  std::vector<size_t> op_of_step(s.inputs.size(), s.ops.size());
  const size_t first =
      s.ops.empty() ? 0 : s.constants.size();  // step that is no constant, which the copying counts with
  for (size_t i = 0; i < s.inputs.size(); ++i) program->steps.push_back({{}, copy_in(*program, i), first});
  for (size_t i = 0; i < s.ops.size(); ++i) {
    const Op& op = s.ops[i];
    program->weight_bytes += weights(op);
    program->scratch_bytes = std::max(program->scratch_bytes, (scratch(s, op) + 63) / 64 * 64);
    const Place& out = program->places[static_cast<size_t>(op.output)];
    if (into[i] >= 0) {
      fused[static_cast<size_t>(into[i])] = &op;
      continue;
    }
    if (out.root != op.output) {
      program->infos.push_back({{op.name}, "alias", 0, Split::automatic});
      continue;
    }
    program->steps.push_back(fused[i] ? bind(*program, *fused[i], &op) : bind(*program, op, nullptr));
    program->steps.back().index = program->infos.size();
    op_of_step.push_back(static_cast<size_t>((fused[i] ? fused[i] : &op) - s.ops.data()));
    program->infos.push_back(program->steps.back().info);
  }
  program->ahead = find_ahead(program->steps, op_of_step, s.ops.size());
  for (size_t i = 0; i < s.outputs.size(); ++i)
    program->steps.push_back({{}, copy_out(*program, i), program->infos.size() - 1});
  join_small(program->steps);
  program->scratch = Aligned<uint8_t>(program->scratch_bytes * static_cast<size_t>(s.threads));
  return program;
}

}  // namespace int8d
