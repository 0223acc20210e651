// Every convolution kernel of this CPU on the layers of ResNet50, MobileNetV2 and EfficientNet, beside its roof.
#include "../../bench.h"

#include <string>

namespace int8d::bench {
namespace {

void run(benchmark::State& state, const ConvKernel& kernel, Layer layer, bool summed) {
  const ConvPackedPtr packed = kernel.pack(layer.def());
  if (!packed) return state.SkipWithError("the weights can't be proven");
  Aligned<uint8_t> scratch(kernel.scratch(layer.shape) + 1);
  const AddParams add{128, 128, 0.5f, 0.5f, 0, 255, 128};
  ConvCall call;
  call.packed = packed.get();
  call.in = layer.in();
  call.out = layer.out(layer.output);
  call.residual = layer.out(layer.residual);
  call.add = summed ? &add : nullptr;
  call.scratch = scratch.data();
  call.row_end = kernel.rows(layer.shape);
  call.panel_end = kernel.panels(layer.shape);
  for (auto _ : state) kernel.run(call);
  report(state, kernel.isa, layer.macs());
}

struct Shape {
  int size, ic, oc, kernel, stride;
  bool summed;
};

constexpr Shape kShapes[] = {
    // ResNet50, and ResNet18 in its 3x3 layers
    {224, 3, 64, 7, 2, false},
    {56, 64, 64, 1, 1, false},
    {56, 64, 64, 3, 1, false},
    {56, 64, 256, 1, 1, false},
    {56, 64, 256, 1, 1, true},
    {56, 256, 64, 1, 1, false},
    {56, 256, 128, 1, 1, false},
    {56, 128, 128, 3, 2, false},
    {28, 128, 512, 1, 1, true},
    {56, 256, 512, 1, 2, false},
    {28, 512, 128, 1, 1, false},
    {28, 128, 128, 3, 1, false},
    {28, 512, 256, 1, 1, false},
    {28, 256, 256, 3, 2, false},
    {14, 256, 1024, 1, 1, true},
    {28, 512, 1024, 1, 2, false},
    {14, 1024, 256, 1, 1, false},
    {14, 256, 256, 3, 1, false},
    {14, 1024, 512, 1, 1, false},
    {14, 512, 512, 3, 2, false},
    {7, 512, 2048, 1, 1, true},
    {14, 1024, 2048, 1, 2, false},
    {7, 2048, 512, 1, 1, false},
    {7, 512, 512, 3, 1, false},
    // MobileNetV2
    {224, 3, 32, 3, 2, false},
    {112, 16, 96, 1, 1, false},
    {56, 24, 144, 1, 1, false},
    {28, 192, 32, 1, 1, false},
    {14, 96, 576, 1, 1, false},
    {7, 160, 960, 1, 1, false},
};

const bool registered = [] {
  for (const Shape& s : kShapes)
    for (const ConvKernel& kernel : conv_kernels()) {
      const Layer layer(s.size, s.ic, s.oc, s.kernel, s.stride, 1);
      if (kernel.isa == Isa::ref || !isa_supported(kernel.isa) || !kernel.accepts(layer.shape)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(s.kernel) + "x" +
                               std::to_string(s.kernel) + "s" + std::to_string(s.stride) + "_" +
                               std::to_string(s.size) + "_" + std::to_string(s.ic) + "_" + std::to_string(s.oc) +
                               (s.summed ? "_add" : "");
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, s](benchmark::State& state) {
        run(state, kernel, Layer(s.size, s.ic, s.oc, s.kernel, s.stride, 1), s.summed);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
