// The builder's operators of attention.
#include "builder.h"

namespace int8d {

void Builder::matmul(const std::string& name, int a, int b, int out, bool transpose_b, float multiplier, int lo,
                     int hi) {
  const Tensor &x = impl_->source(a, Dtype::u8, name), &z = impl_->source(b, Dtype::u8, name);
  const Tensor& y = impl_->target(out, Dtype::u8, name);
  const size_t rank = x.shape.size();
  Impl::require(rank >= 2 && z.shape.size() == rank && y.shape.size() == rank, name,
                "all ranks must be the same, 2 or more");
  Impl::require(std::equal(x.shape.begin(), x.shape.end() - 2, z.shape.begin()) &&
                    std::equal(x.shape.begin(), x.shape.end() - 1, y.shape.begin()),
                name, "the leading axes must be the same");
  const MatmulShape s{x.w, x.c, y.c, transpose_b};
  Impl::require(transpose_b ? z.c == s.k && z.w == s.n : z.w == s.k && z.c == s.n, name,
                "the inner extents, or those of the output, differ");
  auto most = [](const Tensor& t) { return int64_t{std::max(t.zero_point, 255 - t.zero_point)}; };
  Impl::require(most(x) * most(z) * s.k <= INT32_MAX, name, "the sum can overflow int32");
  Impl::check_clamp(lo, hi, name);
  Impl::check_scale(multiplier, name);
  impl_->push(
      name, {a, b}, out,
      MatmulOp{
          s, {x.zero_point, z.zero_point, multiplier, lo, hi, y.zero_point}, &matmul_kernel(s, impl_->sketch.isa)});
}

void Builder::layer_norm(const std::string& name, int in, int out, double epsilon, std::span<const float> gamma,
                         std::span<const float> beta, int lo, int hi) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->target(out, Dtype::u8, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  const size_t n = static_cast<size_t>(x.c);
  Impl::require(n <= kMostNormalized, name, "the last axis has more than 65,536 elements");
  Impl::require(gamma.size() == n && beta.size() == n, name, "gamma and beta need one value an element of a row");
  for (const auto& values : {gamma, beta})
    Impl::require(std::all_of(values.begin(), values.end(), [](float v) { return std::fabs(v) <= 1e30f; }), name,
                  "gamma and beta must be finite, and not larger than 1e30");
  Impl::require(std::isfinite(epsilon) && epsilon >= kLeastEpsilon, name, "epsilon is too small, or not finite");
  Impl::check_clamp(lo, hi, name);
  LayerNormOp op{{epsilon, nullptr, nullptr, lo, hi, y.zero_point}, {}, {}, &layer_norm_kernel(impl_->sketch.isa)};
  op.gamma.assign(gamma.begin(), gamma.end());
  op.beta.assign(beta.begin(), beta.end());
  impl_->push(name, {in}, out, std::move(op));
}

void Builder::softmax(const std::string& name, int in, int out, std::span<const int32_t> table, float scale) {
  const Tensor &x = impl_->source(in, Dtype::u8, name), &y = impl_->tensor(out, name);
  impl_->target(out, y.dtype, name);
  Impl::require(x.shape == y.shape, name, "input and output must have the same shape");
  Impl::require(
      table.size() == 256 && table[0] > 0 && std::all_of(table.begin(), table.end(), [](int32_t e) { return e >= 0; }),
      name, "the table has 256 entries of 0 or more, the first above zero");
  const bool quantized = y.dtype == Dtype::u8;
  Impl::require(quantized || y.dtype == Dtype::f32, name, "the output has the wrong dtype");
  if (quantized) Impl::check_scale(scale, name);
  const SoftmaxParams params = quantized ? SoftmaxParams(table, scale, y.zero_point) : SoftmaxParams(table);
  impl_->push(name, {in}, out, SoftmaxOp{params, &softmax_kernel(impl_->sketch.isa)});
}

}  // namespace int8d
