// Takes operators, checks each against its tensors, chooses its kernel; packs all weights at the end.
#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <unordered_map>

#include "ops.h"
#include "parallel.h"
#include "plan.h"

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
  template <typename Params>
  void push(const std::string& name, std::vector<int> inputs, int output, Params params) {
    sketch.ops.push_back({name, std::move(inputs), output, std::move(params), choice(name)});
    produced[static_cast<size_t>(output)] = true;
  }
  Choice choice(const std::string& name) const {
    const auto found = choices.find(name);
    return found == choices.end() ? Choice{} : found->second;
  }

  // For the operator pushed last: the first of these kernels that can prove its sums packs the weights.
  template <typename Params, typename Kernel>
  void pack_later(const ConvDef& def, std::vector<const Kernel*> kernels) {
    packings.push_back({sketch.ops.size() - 1, def.weight.size(), [def, kernels = std::move(kernels)](Op& op) {
                          Params& params = std::get<Params>(op.params);
                          for (const Kernel* kernel : kernels) {
                            params.kernel = kernel;
                            params.packed = kernel->pack(def);
                            if (params.packed) return;
                          }
                        }});
  }
  void push_linear(const std::string& name, int in, int out, const ConvDef& def) {
    const LinearKernel* kernel = &linear_kernel(sketch.isa);
    push(name, {in}, out, LinearOp{kernel, nullptr});
    pack_later<LinearOp>(def, std::vector{kernel});
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

Builder::Builder(std::string_view isa, int threads, std::chrono::microseconds spin) : impl_(new Impl) {
  if (threads < 1 || threads > 256) throw std::invalid_argument("threads must lie in 1..256");
  impl_->sketch.isa = resolve_isa(isa);
  impl_->sketch.threads = threads;
  impl_->sketch.spin = spin;
}

Builder::~Builder() = default;

int Builder::tensor(const std::vector<int64_t>& shape, Dtype dtype, int zero_point) {
  Tensor t;
  t.shape = shape;
  t.dtype = dtype;
  t.zero_point = zero_point;
  int64_t count = 1;
  for (int64_t extent : shape) {
    if (extent < 1 || extent > (int64_t{1} << 31) / count)
      throw std::invalid_argument("a tensor must have extents of 1 or more and at most 2^31 elements");
    count *= extent;
  }
  if (zero_point < 0 || zero_point > 255) throw std::invalid_argument("a zero point must lie in 0..255");
  const size_t rank = shape.size();
  if (rank > 0) t.c = static_cast<int>(shape[rank - 1]);
  if (rank > 1) t.w = static_cast<int>(shape[rank - 2]);
  if (rank > 2) t.h = static_cast<int>(shape[rank - 3]);
  for (size_t i = 0; i + 3 < rank; ++i) t.n *= static_cast<int>(shape[i]);
  impl_->sketch.tensors.push_back(std::move(t));
  impl_->produced.push_back(false);
  return static_cast<int>(impl_->sketch.tensors.size()) - 1;
}

void Builder::input(int id, bool flip) {
  const Tensor& t = impl_->tensor(id, "input");
  Impl::require(!impl_->produced[static_cast<size_t>(id)], "input", "the tensor is produced twice");
  Impl::require(!flip || t.dtype == Dtype::u8, "input", "only int8 can be flipped");
  impl_->produced[static_cast<size_t>(id)] = true;
  impl_->sketch.inputs.push_back({id, flip});
}

void Builder::output(int id, bool flip) {
  const Tensor& t = impl_->tensor(id, "output");
  Impl::require(impl_->produced[static_cast<size_t>(id)], "output", "the tensor is never produced");
  Impl::require(!flip || t.dtype == Dtype::u8, "output", "only int8 can be flipped");
  impl_->sketch.outputs.push_back({id, flip});
}

void Builder::choose(const std::string& name, Choice choice) { impl_->choices[name] = std::move(choice); }

std::vector<Option> Builder::options() const { return options_of(impl_->sketch); }

void Builder::conv2d(const std::string& name, int in, int out, const WeightsDef& weights, const WindowDef& window,
                     int groups) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  ConvShape s = Impl::window_shape(x, y, window, name);
  s.groups = groups;
  Impl::require(groups > 0 && s.ic % groups == 0 && s.oc % groups == 0, name, "groups must divide the channels");
  const ConvDef def = Impl::definition(s, x, y, weights, name);
  const Isa isa = impl_->sketch.isa;
  if (groups == s.ic && s.ic == s.oc) {
    const auto usual = depthwise_candidates(s, isa), kernels = preferring(usual, impl_->choice(name).kernel);
    impl_->push(name, {in}, out, DepthwiseOp{s, usual, kernels[0], nullptr});
    impl_->pack_later<DepthwiseOp>(def, kernels);
  } else if (groups == 1 && s.kh * s.kw * s.ih * s.iw == 1) {  // squeeze-and-excite: its maps are single pixels
    impl_->push_linear(name, in, out, def);
  } else {
    const auto usual = conv_candidates(s, isa), kernels = preferring(usual, impl_->choice(name).kernel);
    impl_->push(name, {in}, out, ConvOp{s, usual, kernels[0], nullptr});
    impl_->pack_later<ConvOp>(def, kernels);
  }
}

void Builder::linear(const std::string& name, int in, int out, const WeightsDef& weights) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(!x.shape.empty() && x.shape.size() == y.shape.size() &&
                    std::equal(x.shape.begin(), x.shape.end() - 1, y.shape.begin()),
                name, "input and output may differ in their last axis only");
  const ConvShape s = linear_shape(static_cast<int>(x.count() / x.c), x.c, y.c);
  impl_->push_linear(name, in, out, Impl::definition(s, x, y, weights, name));
}

void Builder::max_pool2d(const std::string& name, int in, int out, const WindowDef& window) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  const ConvShape s = Impl::window_shape(x, y, window, name);
  Impl::check_pool(s, name);
  Impl::require(x.zero_point == y.zero_point, name, "input and output must have the same quantization");
  impl_->push(name, {in}, out, MaxPoolOp{s, &pool_kernel(impl_->sketch.isa)});
}

void Builder::avg_pool2d(const std::string& name, int in, int out, const WindowDef& window, bool count_include_pad,
                         std::span<const float> multipliers, int lo, int hi) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  const ConvShape s = Impl::window_shape(x, y, window, name);
  Impl::check_pool(s, name);
  Impl::check_clamp(lo, hi, name);
  Impl::require(multipliers.size() == static_cast<size_t>(s.kh) * s.kw + 1, name,
                "a multiplier is needed for every divisor from 0 to the window's size");
  AvgPoolOp op{
      s, &pool_kernel(impl_->sketch.isa), {x.zero_point, lo, hi, y.zero_point, count_include_pad, nullptr}, {}};
  op.multipliers.assign(multipliers.begin(), multipliers.end());
  impl_->push(name, {in}, out, std::move(op));
}

void Builder::add(const std::string& name, int a, int b, int out, float f1, float f2, int lo, int hi) {
  const Tensor &x = impl_->source(a, Dtype::u8, name), &z = impl_->source(b, Dtype::u8, name);
  const Tensor& y = impl_->target(out, Dtype::u8, name);
  Impl::require(x.shape == y.shape && z.shape == y.shape, name, "all three shapes must be the same");
  Impl::check_clamp(lo, hi, name);
  Impl::check_scale(f1, name);
  Impl::check_scale(std::fabs(f2), name);
  impl_->push(name, {a, b}, out,
              AddOp{{x.zero_point, z.zero_point, f1, f2, lo, hi, y.zero_point}, &add_kernel(impl_->sketch.isa)});
}

void Builder::mul(const std::string& name, int a, int b, int out, float multiplier, int lo, int hi) {
  const Tensor &x = impl_->source(a, Dtype::u8, name), &z = impl_->source(b, Dtype::u8, name);
  const Tensor& y = impl_->target(out, Dtype::u8, name);
  const bool gate = y.shape.size() == 4 && z.shape.size() == 4 && z.n == y.n && z.h == 1 && z.w == 1 && z.c == y.c;
  Impl::require(x.shape == y.shape && (gate || z.shape == y.shape), name,
                "the first input must have the output's shape, the second, too, or be [n, 1, 1, c]");
  Impl::check_clamp(lo, hi, name);
  Impl::check_scale(multiplier, name);
  impl_->push(name, {a, b}, out,
              MulOp{{x.zero_point, z.zero_point, multiplier, lo, hi, y.zero_point}, &mul_kernel(impl_->sketch.isa)});
}

void Builder::lut(const std::string& name, int in, int out, std::span<const uint8_t> table) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  Impl::require(table.size() == 256, name, "a table has 256 entries");
  LutOp op{{}, &lut_kernel(impl_->sketch.isa)};
  std::copy(table.begin(), table.end(), op.table.begin());
  impl_->push(name, {in}, out, op);
}

void Builder::concat(const std::string& name, std::span<const int> in, int out, int axis,
                     const std::vector<std::span<const uint8_t>>& tables) {
  const Tensor& y = impl_->tensor(out, name);
  impl_->target(out, y.dtype, name);
  const int rank = static_cast<int>(y.shape.size());
  Impl::require(rank >= 1 && rank <= 4, name, "concatenation takes tensors of rank 1 to 4");
  Impl::require(axis >= 0 && axis < rank, name, "the axis lies outside the shape");
  Impl::require(!in.empty() && tables.size() == in.size(), name, "every input needs its table, or an empty one");
  int64_t extent = 0;
  ConcatOp op{axis + 4 - rank, {}, {}, &lut_kernel(impl_->sketch.isa)};
  for (size_t i = 0; i < in.size(); ++i) {
    const Tensor& x = impl_->source(in[i], y.dtype, name);
    std::vector<int64_t> shape = x.shape;
    Impl::require(shape.size() == y.shape.size(), name, "all ranks must be the same");
    extent += shape[static_cast<size_t>(axis)];
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

void Builder::quantize(const std::string& name, int in, int out, float scale) {
  const Tensor &x = impl_->source(in, Dtype::f32, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  Impl::check_scale(scale, name);
  impl_->push(name, {in}, out, QuantizeOp{scale});
}

void Builder::dequantize(const std::string& name, int in, int out, float scale) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::f32, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  Impl::check_scale(scale, name);
  impl_->push(name, {in}, out, DequantizeOp{scale});
}

void Builder::softmax(const std::string& name, int in, int out, std::span<const int32_t> table) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::f32, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  Impl::require(
      table.size() == 256 && table[0] > 0 && std::all_of(table.begin(), table.end(), [](int32_t e) { return e >= 0; }),
      name, "the table has 256 entries of 0 or more, the first above zero");
  SoftmaxOp op;
  std::copy(table.begin(), table.end(), op.table.begin());
  impl_->push(name, {in}, out, op);
}

std::unique_ptr<Program> Builder::build() {
  Impl::require(!impl_->sketch.inputs.empty() && !impl_->sketch.outputs.empty(), "program",
                "it needs an input and an output");
  impl_->pack_all();
  return std::make_unique<Program>(plan(std::move(impl_->sketch)));
}

}  // namespace int8d
