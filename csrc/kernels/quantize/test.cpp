// The borders between float and int8 give the formula's values, and touch no byte beyond their arrays.
#include <cmath>
#include <limits>

#include "../../testing.h"
#include "quantize.h"

namespace int8d::testing {

TEST(quantize_keeps_to_its_arrays_and_takes_every_float) {
  Random r(8);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (size_t count = 1; count < 300; ++count) {
    const Flush flush = r.flush();
    Guarded in(count * sizeof(float), flush), out(count, flush);
    float* x = reinterpret_cast<float*>(in.data());
    const float scale = r.in(0, 1) ? 0.5f : r.real(1e-3f, 2);
    const int zp = r.in(0, 255);
    const float extremes[] = {kInfinity, -kInfinity, std::nanf(""), 3e38f, -3e38f, 0.0f, -0.0f, 0.25f, 0.75f, 1e-45f};
    for (size_t i = 0; i < count; ++i) x[i] = r.in(0, 3) ? r.real(-300, 300) * scale : extremes[r.in(0, 9)];
    quantize_u8(x, out.data(), count, scale, zp);
    for (size_t i = 0; i < count; ++i) {
      const double steps = x[i] / scale, floor = std::floor(steps), rest = steps - floor;
      double q = floor + (rest > 0.5 || (rest == 0.5 && std::fmod(floor, 2) != 0)) + zp;  // ties to even
      if (std::isinf(steps)) q = steps;
      const int expected = std::isnan(steps) ? zp : q < 0 ? 0 : q > 255 ? 255 : static_cast<int>(q);
      CHECK(out.data()[i] == expected, "%g / %g + %d: %d, not %d", x[i], scale, zp, out.data()[i], expected);
    }
  }
}

TEST(dequantize_keeps_to_its_arrays) {
  Random r(9);
  for (size_t count = 1; count < 300; ++count) {
    const Flush flush = r.flush();
    Guarded in(count, flush), out(count * sizeof(float), flush);
    r.fill(in.data(), count);
    const int zp = r.in(0, 255);
    dequantize_u8(in.data(), reinterpret_cast<float*>(out.data()), count, 0.125f, zp);
    for (size_t i = 0; i < count; ++i)
      CHECK(reinterpret_cast<float*>(out.data())[i] * 8 == static_cast<float>(in.data()[i] - zp), "%zu", i);
  }
}

}  // namespace int8d::testing
