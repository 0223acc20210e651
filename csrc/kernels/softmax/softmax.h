// Softmax of quantized logits, exact: a table of integer exponentials, an integer sum, one IEEE division.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace int8d {

// One row. table[d] = rint(exp(-d * scale) * 2^23), so table[0] > 0 and the sum is at least that.
inline void softmax_u8(const uint8_t* in, float* out, size_t count, const int32_t* table) {
  const uint8_t most = *std::max_element(in, in + count);
  int64_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += table[most - in[i]];
  for (size_t i = 0; i < count; ++i)
    out[i] = static_cast<float>(static_cast<double>(table[most - in[i]]) / static_cast<double>(sum));
}

}  // namespace int8d
