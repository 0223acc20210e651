// A linear layer of ViT-B/16's, 197 rows, on every linear kernel of this CPU, and as the 1x1 convolution that it is
// lowered to, on every convolution's, beside its roof.
#include "../../bench.h"

#include <string>

#include "linear.h"

namespace int8d::bench {
namespace {

struct Operands {
  ConvShape shape;
  std::vector<int8_t> weight;
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
  Aligned<uint8_t> in, out;

  Operands(int m, int k, int n)
      : shape(linear_shape(m, k, n)),
        weight(static_cast<size_t>(k) * n),
        bias(static_cast<size_t>(n), 100),
        multiplier(static_cast<size_t>(n), 1e-3f),
        in(static_cast<size_t>(m) * k + kOverread),
        out(static_cast<size_t>(m) * n + kOverread) {
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<int8_t>(static_cast<int>(i * 7 % 101) - 50);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(i * 11);
  }
  ConvDef def() const { return {shape, weight, bias, multiplier, 128, 0, 255, 128}; }
  double macs() const { return 1.0 * shape.ow * shape.ic * shape.oc; }
};

void run_linear(benchmark::State& state, const LinearKernel& kernel, Operands o) {
  const ConvPackedPtr packed = kernel.pack(o.def());
  for (auto _ : state)
    kernel.run({packed.get(), o.in.data(), o.out.data(), 0, o.shape.ow, 0, kernel.panels(o.shape.oc)});
  report(state, kernel.isa, o.macs());
}

void run_conv(benchmark::State& state, const ConvKernel& kernel, Operands o) {
  const ConvPackedPtr packed = kernel.pack(o.def());
  if (!packed) return state.SkipWithError("the weights can't be proven");
  Aligned<uint8_t> scratch(kernel.scratch(o.shape) + 1);
  ConvCall call;
  call.packed = packed.get();
  call.in = {o.in.data(), 0, 0, o.shape.ic};
  call.out = {o.out.data(), 0, 0, o.shape.oc};
  call.scratch = scratch.data();
  call.row_end = kernel.rows(o.shape);
  call.panel_end = kernel.panels(o.shape);
  for (auto _ : state) kernel.run(call);
  report(state, kernel.isa, o.macs());
}

const bool registered = [] {
  for (const auto& [m, k, n] :
       {std::array<int, 3>{197, 768, 3072}, {197, 3072, 768}, {197, 768, 768}, {1, 768, 1000}}) {
    const std::string shape = "/" + std::to_string(m) + "_" + std::to_string(k) + "_" + std::to_string(n);
    const auto add = [&](const std::string& name, auto run) {
      benchmark::RegisterBenchmark((name + shape).c_str(), run)->Unit(benchmark::kMicrosecond);
    };
    for (const LinearKernel& kernel : linear_kernels())
      if (kernel.isa != Isa::ref && isa_supported(kernel.isa))
        add(kernel.name,
            [&kernel, m = m, k = k, n = n](benchmark::State& state) { run_linear(state, kernel, {m, k, n}); });
    for (const ConvKernel& kernel : conv_kernels())
      if (kernel.isa != Isa::ref && isa_supported(kernel.isa) && kernel.accepts(linear_shape(m, k, n)) && m > 1)
        add(std::string("linear_by_") + kernel.name,
            [&kernel, m = m, k = k, n = n](benchmark::State& state) { run_conv(state, kernel, {m, k, n}); });
  }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
