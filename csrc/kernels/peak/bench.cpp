// How fast one core reads memory that lies in L2, in L3, or beyond: what layers with large weights are bound by.
#include "../../bench.h"

#include <cstring>
#include <string>

namespace int8d::bench {
namespace {

void run(benchmark::State& state) {
  const size_t bytes = static_cast<size_t>(state.range(0)) << 10;
  Aligned<uint8_t> memory(bytes);
  for (auto _ : state) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes; i += sizeof sums)
      for (size_t k = 0; k < 8; ++k) {
        uint64_t word;
        std::memcpy(&word, memory.data() + i + 8 * k, 8);
        sums[k] += word;
      }
    benchmark::DoNotOptimize(sums);
  }
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * bytes));
}

// Kilobytes: in L1, in L2, the weights of ResNet18 and of ResNet50.
const bool registered = [] {
  for (const int64_t size : {32, 1024, 12 * 1024, 26 * 1024}) {
    benchmark::RegisterBenchmark("read_memory", run)->Arg(size)->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
