// Every product kernel of this CPU on the gates of EfficientNet: "bytes" are elements of the map a second.
#include "../../bench.h"

#include <string>

#include "mul.h"

namespace int8d::bench {
namespace {

struct Shape {
  size_t size, channels;
};

void run(benchmark::State& state, const MulKernel& kernel, Shape shape) {
  const size_t pixels = shape.size * shape.size, count = pixels * shape.channels;
  Aligned<uint8_t> a(count), gate(shape.channels), out(count);
  const MulParams params{20, 0, 0.004f, 0, 255, 18};
  for (size_t i = 0; i < count; ++i) a[i] = static_cast<uint8_t>(i * 7);
  for (size_t i = 0; i < shape.channels; ++i) gate[i] = static_cast<uint8_t>(i * 5);
  for (auto _ : state) kernel.run({a.data(), gate.data(), out.data(), pixels, shape.channels, 0, &params});
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * count));
}

const bool registered = [] {
  for (const Shape shape : {Shape{112, 32}, {56, 96}, {56, 144}, {28, 240}, {14, 672}, {7, 1152}})
    for (const MulKernel& kernel : mul_kernels()) {
      if (kernel.isa == Isa::ref || !isa_supported(kernel.isa)) continue;
      const std::string name =
          std::string(kernel.name) + "/" + std::to_string(shape.size) + "_" + std::to_string(shape.channels);
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, shape](benchmark::State& state) {
        run(state, kernel, shape);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
