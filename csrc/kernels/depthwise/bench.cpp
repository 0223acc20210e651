// Every depthwise kernel of this CPU on the layers of MobileNetV2, MobileNetV3 and EfficientNet.
#include "../../bench.h"

#include <string>

#include "depthwise.h"

namespace int8d::bench {
namespace {

void run(benchmark::State& state, const DepthwiseKernel& kernel, Layer layer) {
  const DepthwisePackedPtr packed = kernel.pack(layer.def());
  const DepthwiseCall call{packed.get(), layer.in(), layer.out(layer.output), nullptr, 0, layer.shape.oh};
  for (auto _ : state) kernel.run(call);
  report(state, kernel.isa, layer.macs());
}

struct Shape {
  int size, channels, kernel, stride;
};

constexpr Shape kShapes[] = {{112, 32, 3, 1}, {112, 96, 3, 2}, {56, 72, 5, 2}, {56, 144, 3, 1},
                             {28, 192, 3, 1}, {14, 384, 3, 1}, {7, 960, 3, 1}, {28, 240, 5, 1},
                             {28, 240, 5, 2}, {14, 672, 5, 1}, {7, 1152, 5, 1}};

const bool registered = [] {
  for (const Shape& s : kShapes)
    for (const DepthwiseKernel& kernel : depthwise_kernels()) {
      const Layer layer(s.size, s.channels, s.channels, s.kernel, s.stride, s.channels);
      if (kernel.isa == Isa::ref || !isa_supported(kernel.isa) || !kernel.accepts(layer.shape)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(s.kernel) + "x" +
                               std::to_string(s.kernel) + "s" + std::to_string(s.stride) + "_" +
                               std::to_string(s.size) + "_" + std::to_string(s.channels);
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, s](benchmark::State& state) {
        run(state, kernel, Layer(s.size, s.channels, s.channels, s.kernel, s.stride, s.channels));
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
