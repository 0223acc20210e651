#include "peak.h"

#include <algorithm>

#include "loops.h"

namespace int8d {
namespace {

struct Loop {
  Isa isa;
  int macs;
  void (*run)(int64_t rounds);
};

constexpr Loop kLoops[] = {
    {Isa::ref, 0, nullptr},
#define INT8D_PEAK(isa, macs) {Isa::isa, macs, peak_##isa},
#include "kernels.inc"
#undef INT8D_PEAK
};

}  // namespace

double peak_gmacs(Isa isa, std::chrono::milliseconds time) {
  using Clock = std::chrono::steady_clock;
  const Loop* loop = nullptr;
  for (const Loop& candidate : kLoops)
    if (candidate.run && candidate.isa <= isa && isa_supported(candidate.isa)) loop = &candidate;
  if (!loop) return 0;
  constexpr int64_t kRounds = 100'000;
  loop->run(kRounds);  // warm
  double best = 0;
  for (const auto end = Clock::now() + time; Clock::now() < end;) {
    const auto start = Clock::now();
    loop->run(kRounds);
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(kRounds) * kPeakChains * loop->macs / ns);
  }
  return best;
}

}  // namespace int8d
