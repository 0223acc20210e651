// Every strided copy of this CPU: maps to planes and back, attention's heads, Swin's windows, a step over pixels, a
// gate repeated. "bytes" are those of the output.
#include "../../bench.h"

#include <string>

#include "move.h"

namespace int8d::bench {
namespace {

struct Case {
  const char* name;
  size_t element;
  std::vector<int64_t> count;   // of the output
  std::vector<ptrdiff_t> from;  // in elements
};

void run(benchmark::State& state, const MoveKernel& kernel, const Case& c) {
  MoveShape shape;
  shape.element = c.element;
  const auto element = static_cast<ptrdiff_t>(c.element);
  std::vector<ptrdiff_t> to(c.count.size(), element);
  ptrdiff_t in_bytes = element;
  for (size_t i = c.count.size(); i-- > 0;) {
    if (i > 0) to[i - 1] = to[i] * c.count[i];
    in_bytes += (c.count[i] - 1) * c.from[i] * element;
  }
  for (size_t i = 0; i < c.count.size(); ++i) shape.loop(c.count[i], c.from[i] * element, to[i]);
  const auto bytes = static_cast<size_t>(to[0] * c.count[0]);
  Aligned<uint8_t> in(static_cast<size_t>(in_bytes) + kOverread), out(bytes);
  const MoveCall call{in.data(), out.data(), simplify(shape)};
  for (auto _ : state) {
    kernel.run(call);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<size_t>(state.iterations()) * bytes));
}

const std::vector<Case> kCases = {
    {"nhwc_to_nchw_56x56x64", 1, {64, 3136}, {1, 64}},
    {"nchw_to_nhwc_56x56x64", 1, {3136, 64}, {1, 3136}},
    {"nhwc_to_nchw_224x224x3", 1, {3, 50176}, {1, 3}},
    {"nchw_to_nhwc_224x224x3", 1, {50176, 3}, {1, 50176}},
    {"nchw_to_nhwc_224x224x3_f32", 4, {50176, 3}, {1, 50176}},
    {"nhwc_to_nchw_56x56x64_f32", 4, {64, 3136}, {1, 64}},
    {"heads_197x12x64", 1, {12, 197, 64}, {64, 768, 1}},
    {"keys_12x197x64_turned", 1, {12, 64, 197}, {12608, 1, 64}},
    {"swin_windows_56x56x96", 1, {8, 8, 7, 7, 96}, {7 * 56 * 96, 7 * 96, 56 * 96, 96, 1}},
    {"every_second_pixel_56x56x64", 1, {28, 28, 64}, {2 * 56 * 64, 2 * 64, 1}},
    {"repeat_channel_56x56x64", 1, {3136, 64}, {1, 0}},
};

const bool registered = [] {
  for (const Case& c : kCases)
    for (const MoveKernel& kernel : move_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      benchmark::RegisterBenchmark((std::string(kernel.name) + "/" + c.name).c_str(), [&](benchmark::State& state) {
        run(state, kernel, c);
      })->Unit(benchmark::kMicrosecond);
    }
  return true;
}();

}  // namespace
}  // namespace int8d::bench
