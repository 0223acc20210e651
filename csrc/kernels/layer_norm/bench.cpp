// Every layer normalization of this CPU on the rows of ViT-B/16 and Swin-T: "bytes" are elements a second.
#include "../../bench.h"

#include <string>

#include "layer_norm.h"

namespace int8d::bench {
namespace {

void run(benchmark::State& state, const LayerNormKernel& kernel, size_t rows, size_t n) {
  Aligned<uint8_t> in(rows * n), out(rows * n);
  for (size_t i = 0; i < rows * n; ++i) in[i] = static_cast<uint8_t>(i * i >> 3);
  const std::vector<float> gamma(n, 30), beta(n, 1);
  const LayerNormParams params{1, gamma.data(), beta.data(), 0, 255, 128};
  for (auto _ : state) kernel.run({in.data(), out.data(), rows, n, &params});
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * rows * n));
}

const bool registered = [] {
  for (const auto& [rows, n] : {std::pair<size_t, size_t>{197, 768}, {3136, 96}, {49, 768}})
    for (const LayerNormKernel& kernel : layer_norm_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(rows) + "_" + std::to_string(n);
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, rows, n](benchmark::State& state) {
        run(state, kernel, rows, n);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
