// What the builder's methods share: checks, and the operators and weights that it collects. All weights are packed at
// the end.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <unordered_map>

#include "ops.h"
#include "parallel.h"

namespace int8d {

struct Builder::Impl {
  // An operator's weights, still to be packed.
  struct Packing {
    size_t op, bytes;
    std::function<void(Op&)> pack;
  };

  Sketch sketch;
  std::vector<bool> produced;
  std::unordered_map<std::string, Choice> choices;
  std::vector<Packing> packings;
  std::unordered_map<std::string, const Op*> twins;  // of programs with the same weights, by the operators' names

  [[noreturn]] static void fail(const std::string& name, const std::string& why) {
    throw std::invalid_argument(name + ": " + why);
  }
  static void require(bool holds, const std::string& name, const char* why) {
    if (!holds) fail(name, why);
  }

  const Tensor& tensor(int id, const std::string& name) const {
    require(id >= 0 && id < static_cast<int>(sketch.tensors.size()), name, "there is no such tensor");
    return sketch.tensors[static_cast<size_t>(id)];
  }
  const Tensor& source(int id, Dtype dtype, const std::string& name) const {
    const Tensor& t = tensor(id, name);
    require(produced[static_cast<size_t>(id)], name, "an input is used before it is produced");
    require(t.dtype == dtype, name, "an input has the wrong dtype");
    return t;
  }
  const Tensor& target(int id, Dtype dtype, const std::string& name) const {
    const Tensor& t = tensor(id, name);
    require(!produced[static_cast<size_t>(id)], name, "the output is produced twice");
    require(t.dtype == dtype, name, "the output has the wrong dtype");
    return t;
  }
  // Input and output of an operator that keeps dtype and rank.
  struct Pair {
    const Tensor &in, &out;
  };
  Pair same_kind(int in, int out, const std::string& name) const {
    const Tensor& y = tensor(out, name);
    const Tensor& x = source(in, y.dtype, name);
    target(out, y.dtype, name);
    require(x.shape.size() == y.shape.size() && x.shape.size() <= kMoveRank, name,
            "input and output must have the same rank, 8 or less");
    return {x, y};
  }
  template <typename Params>
  void push(const std::string& name, std::vector<int> inputs, int output, Params params) {
    sketch.ops.push_back({name, std::move(inputs), output, std::move(params), choice(name)});
    produced[static_cast<size_t>(output)] = true;
  }
  Choice choice(const std::string& name) const {
    const auto found = choices.find(name);
    return found == choices.end() ? Choice{} : found->second;
  }

  void push_move(const std::string& name, int in, int out, std::vector<MoveOp::Axis> axes);

  // For the operator pushed last: the first of these kernels that can prove its sums packs the weights, or takes what
  // it has packed of them for another program.
  template <typename Params, typename Kernel>
  void pack_later(const ConvDef& def, std::vector<const Kernel*> kernels) {
    packings.push_back({sketch.ops.size() - 1, def.weight.size(), [this, def, kernels = std::move(kernels)](Op& op) {
                          Params& params = std::get<Params>(op.params);
                          const auto found = twins.find(op.name);
                          const Params* twin =
                              found == twins.end() ? nullptr : std::get_if<Params>(&found->second->params);
                          for (const Kernel* kernel : kernels) {
                            params.kernel = kernel;
                            params.packed = twin && twin->kernel == kernel ? packed_again(*twin->packed, def) : nullptr;
                            if (!params.packed) params.packed = kernel->pack(def);
                            if (params.packed) return;
                          }
                        }});
  }
  void push_linear(const std::string& name, int in, int out, const ConvDef& def) {
    const LinearKernel* kernel = &linear_kernel(sketch.isa);
    push(name, {in}, out, LinearOp{kernel, nullptr});
    pack_later<LinearOp>(def, std::vector{kernel});
  }
  void push_conv(const std::string& name, int in, int out, const ConvDef& def) {
    const auto usual = conv_candidates(def.shape, sketch.isa), kernels = preferring(usual, choice(name).kernel);
    push(name, {in}, out, ConvOp{def.shape, usual, kernels[0], nullptr});
    pack_later<ConvOp>(def, kernels);
  }
  void pack_all() {
    std::stable_sort(packings.begin(), packings.end(),
                     [](const Packing& a, const Packing& b) { return a.bytes > b.bytes; });
    parallel_for(packings.size(), sketch.threads, [this](size_t i) { packings[i].pack(sketch.ops[packings[i].op]); });
  }

  static void check_clamp(int lo, int hi, const std::string& name) {
    require(0 <= lo && lo <= hi && hi <= 255, name, "lo and hi must keep 0 <= lo <= hi <= 255");
  }
  static void check_scale(float scale, const std::string& name) {
    require(std::isfinite(scale) && scale > 0, name, "a scale must be finite and above zero");
  }

  static ConvShape window_shape(const Tensor& in, const Tensor& out, const WindowDef& w, const std::string& name) {
    require(in.shape.size() == 4 && out.shape.size() == 4, name, "input and output must be 4-D, NHWC");
    for (int i = 0; i < 2; ++i)
      require(w.kernel[i] > 0 && w.stride[i] > 0 && w.dilation[i] > 0 && w.kernel[i] <= 4096 && w.stride[i] <= 4096 &&
                  w.dilation[i] <= 4096,
              name, "kernel, stride and dilation must lie in 1..4096");
    for (int p : w.padding) require(p >= 0 && p <= 4096, name, "padding must lie in 0..4096");
    ConvShape s;
    s.batch = in.n;
    s.ih = in.h, s.iw = in.w, s.ic = in.c;
    s.oh = out.h, s.ow = out.w, s.oc = out.c;
    s.kh = w.kernel[0], s.kw = w.kernel[1], s.sh = w.stride[0], s.sw = w.stride[1];
    s.dh = w.dilation[0], s.dw = w.dilation[1];
    s.pad_top = w.padding[0], s.pad_left = w.padding[1], s.pad_bottom = w.padding[2], s.pad_right = w.padding[3];
    const int64_t room_y = static_cast<int64_t>(s.ih) + s.pad_top + s.pad_bottom - (int64_t{s.kh} - 1) * s.dh - 1;
    const int64_t room_x = static_cast<int64_t>(s.iw) + s.pad_left + s.pad_right - (int64_t{s.kw} - 1) * s.dw - 1;
    require(room_y >= 0 && room_x >= 0, name, "the window is larger than the padded map");
    require(out.n == in.n && s.oh == room_y / s.sh + 1 && s.ow == room_x / s.sw + 1, name,
            "the output's shape does not follow from the window");
    return s;
  }

  static void check_pool(const ConvShape& s, const std::string& name) {
    require(s.ic == s.oc, name, "a pool keeps its channels");
    require(std::max(s.pad_top, s.pad_bottom) < s.kh && std::max(s.pad_left, s.pad_right) < s.kw &&
                (s.dh == 1 || s.pad_top + s.pad_bottom == 0) && (s.dw == 1 || s.pad_left + s.pad_right == 0),
            name, "padding must be smaller than the window, and zero with dilation");
  }

  static ConvDef definition(const ConvShape& s, const Tensor& in, const Tensor& out, const WeightsDef& w,
                            const std::string& name) {
    const size_t k = static_cast<size_t>(s.kh) * s.kw * (s.ic / s.groups);
    require(w.weight.size() == k * static_cast<size_t>(s.oc), name, "the weight has the wrong size");
    require(w.rest.empty() || w.rest.size() == w.weight.size(), name,
            "the weight's rest has another size than the weight");
    require(std::all_of(w.rest.begin(), w.rest.end(), [](int16_t r) { return -128 <= r && r <= 128; }), name,
            "the weight's rest must lie in -128..128");
    require(w.bias.size() == static_cast<size_t>(s.oc) && w.multiplier.size() == w.bias.size(), name,
            "bias and multiplier need one value an output channel");
    require(std::all_of(w.multiplier.begin(), w.multiplier.end(), [](float m) { return std::isfinite(m) && m > 0; }),
            name, "multipliers must be finite and above zero");
    check_clamp(w.lo, w.hi, name);
    return {s, w.weight, w.bias, w.multiplier, in.zero_point, w.lo, w.hi, out.zero_point, w.rest};
  }
};

}  // namespace int8d
