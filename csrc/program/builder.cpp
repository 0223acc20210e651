// Takes operators, checks each against its tensors, chooses its kernel; packs all weights at the end.
#include "builder.h"

#include "plan.h"

namespace int8d {

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
  } else if (groups == 1 && s.kh == 1 && s.kw == 1 && s.ih == 1 && s.iw == 1) {  // squeeze-and-excite: single pixels
    impl_->push_linear(name, in, out, def);
  } else {
    impl_->push_conv(name, in, out, def);
  }
}

void Builder::linear(const std::string& name, int in, int out, const WeightsDef& weights) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(!x.shape.empty() && x.shape.size() == y.shape.size() &&
                    std::equal(x.shape.begin(), x.shape.end() - 1, y.shape.begin()),
                name, "input and output may differ in their last axis only");
  // With more than a few rows it is a 1x1 convolution: over the map that the tensor is anyway, or, where that is
  // narrow, over all rows as one. The latter needs maps without a halo, and only 4-D ones have a window over them.
  constexpr int kFew = 8;
  ConvShape s = linear_shape(static_cast<int>(x.count() / x.c), x.c, y.c);
  if (x.w >= kFew) {
    s.batch = x.n;
    s.ih = s.oh = x.h;
    s.iw = s.ow = x.w;
  } else if (s.ow < kFew || x.shape.size() == 4) {
    return impl_->push_linear(name, in, out, Impl::definition(s, x, y, weights, name));
  }
  impl_->push_conv(name, in, out, Impl::definition(s, x, y, weights, name));
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

void Builder::share(const Program& program) {
  for (const Op& op : program.impl_->sketch.ops) impl_->twins[op.name] = &op;
}

std::unique_ptr<Program> Builder::build() {
  Impl::require(!impl_->sketch.outputs.empty(), "program", "it needs an output");
  impl_->pack_all();
  return std::make_unique<Program>(plan(std::move(impl_->sketch)));
}

}  // namespace int8d
