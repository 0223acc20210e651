// Every bilinear interpolation of this CPU on a segmentation's scores and on a map of a decoder. "bytes" are those of
// the output.
#include "../../bench.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "resize.h"

namespace int8d::bench {
namespace {

struct Shape {
  int from, to, channels;
};

std::vector<Blend> half_pixel(int from, int to) {
  std::vector<Blend> made;
  for (int i = 0; i < to; ++i) {
    const double at = std::clamp((i + 0.5) * from / to - 0.5, 0.0, from - 1.0);
    const int low = static_cast<int>(at);
    made.push_back({low, std::min(low + 1, from - 1), static_cast<int>(std::lrint((at - low) * 2048))});
  }
  return made;
}

void run(benchmark::State& state, const ResizeKernel& kernel, Shape s) {
  const size_t in_bytes = static_cast<size_t>(s.from) * s.from * s.channels;
  const size_t bytes = static_cast<size_t>(s.to) * s.to * s.channels;
  Aligned<uint8_t> in(in_bytes), out(bytes);
  Aligned<int32_t> scratch(2 * static_cast<size_t>(s.to) * s.channels);
  const std::vector<Blend> blends = half_pixel(s.from, s.to);
  const View from{in.data(), 0, static_cast<ptrdiff_t>(s.from) * s.channels, s.channels};
  const View to{out.data(), 0, static_cast<ptrdiff_t>(s.to) * s.channels, s.channels};
  const ResizeCall call{from, to, s.to, s.to, s.channels, blends, blends, false, scratch.data(), 0, s.to};
  for (auto _ : state) resize2d(kernel, call);
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * bytes));
}

const bool registered = [] {
  for (const Shape s : {Shape{28, 224, 21}, {14, 28, 256}})
    for (const ResizeKernel& kernel : resize_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(s.from) + "_" + std::to_string(s.to) +
                               "_" + std::to_string(s.channels);
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, s](benchmark::State& state) {
        run(state, kernel, s);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
