// Every product of activations of this CPU on the heads of ViT-B/16 and on the windows of Swin-T, one head at a time,
// beside its roof. q k^T is with transposed b, p v without.
#include "../../bench.h"

#include <string>

#include "../common/view.h"
#include "matmul.h"

namespace int8d::bench {
namespace {

void run(benchmark::State& state, const MatmulKernel& kernel, const MatmulShape& s) {
  Aligned<uint8_t> a(static_cast<size_t>(s.m) * s.k + kOverread), b(static_cast<size_t>(s.k) * s.n + kOverread),
      out(static_cast<size_t>(s.m) * s.n), scratch(kernel.scratch(s) + 1);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(i * 7);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<uint8_t>(i * 11);
  const MatmulParams params{128, 120, 1e-4f, 0, 255, 128};
  for (auto _ : state) kernel.run({s, a.data(), b.data(), out.data(), 0, s.m, scratch.data(), &params});
  report(state, kernel.isa, 1.0 * s.m * s.k * s.n);
}

const bool registered = [] {
  for (const MatmulShape& s :
       {MatmulShape{197, 64, 197, true}, {197, 197, 64, false}, {49, 32, 49, true}, {49, 49, 32, false}})
    for (const MatmulKernel& kernel : matmul_kernels()) {
      if (kernel.isa == Isa::ref || !isa_supported(kernel.isa)) continue;
      const std::string name = std::string(kernel.name) + "/" + std::to_string(s.m) + "_" + std::to_string(s.k) + "_" +
                               std::to_string(s.n) + (s.transpose_b ? "_transposed" : "");
      benchmark::RegisterBenchmark(name.c_str(), [&kernel, s](benchmark::State& state) {
        run(state, kernel, s);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
