// Softmax gives integer shares of an integer sum, and touches no byte beyond its arrays.
#include "../../testing.h"
#include "softmax.h"

namespace int8d::testing {

TEST(softmax_keeps_to_its_arrays) {
  Random r(10);
  for (size_t count = 1; count < 300; ++count) {
    const Flush flush = r.flush();
    Guarded in(count, flush), out(count * sizeof(float), flush), memory(256 * sizeof(int32_t), flush);
    r.fill(in.data(), count);
    int32_t* table = reinterpret_cast<int32_t*>(memory.data());
    table[0] = 1 << 23;
    for (int i = 1; i < 256; ++i) table[i] = r.in(0, table[i - 1]);
    float* y = reinterpret_cast<float*>(out.data());
    softmax_u8(in.data(), y, count, table);
    int most = 0;
    int64_t sum = 0;
    for (size_t i = 0; i < count; ++i) most = in.data()[i] > most ? in.data()[i] : most;
    for (size_t i = 0; i < count; ++i) sum += table[most - in.data()[i]];
    for (size_t i = 0; i < count; ++i) {
      const double share = static_cast<double>(table[most - in.data()[i]]) / static_cast<double>(sum);
      CHECK(y[i] == static_cast<float>(share), "%zu of %zu", i, count);
    }
  }
}

}  // namespace int8d::testing
