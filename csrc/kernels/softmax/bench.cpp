// Every softmax of this CPU on the rows of ViT-B/16, of Swin-T and of a classifier: "bytes" are elements a second.
#include "../../bench.h"

#include <cmath>
#include <string>

#include "softmax.h"

namespace int8d::bench {
namespace {

void run(benchmark::State& state, const SoftmaxKernel& kernel, size_t rows, size_t count, bool quantized) {
  Aligned<uint8_t> in(rows * count), out(rows * count * sizeof(float));
  for (size_t i = 0; i < rows * count; ++i) in[i] = static_cast<uint8_t>(i * i * 7 >> 4);
  std::vector<int32_t> table(256);
  for (size_t d = 0; d < 256; ++d) table[d] = static_cast<int32_t>(std::rint(std::exp(-0.05 * double(d)) * 0x1p23));
  const SoftmaxParams params = quantized ? SoftmaxParams(table, 1.0f / 256, 0) : SoftmaxParams(table);
  for (auto _ : state) kernel.run({in.data(), out.data(), rows, count, &params});
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * rows * count));
}

struct Shape {
  size_t rows, count;
  bool quantized;
};

const bool registered = [] {
  for (const Shape s : {Shape{197, 197, true}, {49, 49, true}, {197, 197, false}, {1, 1000, false}})
    for (const SoftmaxKernel& kernel : softmax_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(s.rows) + "_" + std::to_string(s.count) +
                               (s.quantized ? "_quantized" : "");
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, s](benchmark::State& state) {
        run(state, kernel, s.rows, s.count, s.quantized);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
