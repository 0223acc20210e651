// What the kernel benches share: the roof, and operands of a layer.
#pragma once
#include <benchmark/benchmark.h>

#include <array>
#include <random>
#include <vector>

#include "kernels/common/aligned.h"
#include "kernels/conv/conv.h"
#include "kernels/peak/peak.h"

namespace int8d::bench {

// Adds "GMAC/s" and "of_peak" (the share of the register-only loop, measured at the first call) to a bench.
inline void report(benchmark::State& state, Isa isa, double macs) {
  static const std::array<double, kIsas> peaks = [] {
    std::array<double, kIsas> found{};
    for (Isa each : supported_isas()) found[static_cast<size_t>(each)] = peak_gmacs(each);
    return found;
  }();
  using benchmark::Counter;
  state.counters["GMAC/s"] = Counter(macs * 1e-9, Counter::kIsIterationInvariantRate);
  const double peak = peaks[static_cast<size_t>(isa)];
  if (peak > 0) state.counters["of_peak"] = Counter(macs * 1e-9 / peak, Counter::kIsIterationInvariantRate);
}

// A square layer with random weights, and its maps with halos.
struct Layer {
  ConvShape shape;
  std::vector<int8_t> weight;
  std::vector<int32_t> bias;
  std::vector<float> multiplier;
  Aligned<uint8_t> input, output, residual;

  Layer(int size, int ic, int oc, int kernel, int stride, int groups) {
    ConvShape& s = shape;
    s.ih = s.iw = size, s.ic = ic, s.oc = oc, s.kh = s.kw = kernel, s.sh = s.sw = stride, s.groups = groups;
    s.pad_top = s.pad_left = s.pad_bottom = s.pad_right = kernel / 2;
    s.oh = s.ow = (size - 1) / stride + 1;
    std::mt19937 random(1);
    weight.resize(static_cast<size_t>(oc) * kernel * kernel * (ic / groups));
    for (int8_t& w : weight) w = static_cast<int8_t>(static_cast<int>(random() % 101) - 50);
    bias.assign(static_cast<size_t>(oc), 100);
    multiplier.assign(static_cast<size_t>(oc), 1e-3f);
    input = Aligned<uint8_t>(static_cast<size_t>(size + kernel) * (size + kernel) * ic + kOverread);
    for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<uint8_t>(random());
    output = Aligned<uint8_t>(static_cast<size_t>(s.oh) * s.ow * oc + kOverread);
    residual = Aligned<uint8_t>(output.size());
  }
  ConvDef def() const { return {shape, weight, bias, multiplier, 128, 0, 255, 128}; }
  View in() {
    const ptrdiff_t row = static_cast<ptrdiff_t>(shape.iw + shape.kw - 1) * shape.ic;
    return {input.data() + shape.pad_top * row + shape.pad_left * shape.ic, 0, row, shape.ic};
  }
  View out(Aligned<uint8_t>& map) { return {map.data(), 0, static_cast<ptrdiff_t>(shape.ow) * shape.oc, shape.oc}; }
  double macs() const { return 1.0 * shape.oh * shape.ow * shape.oc * shape.kh * shape.kw * (shape.ic / shape.groups); }
};

}  // namespace int8d::bench
