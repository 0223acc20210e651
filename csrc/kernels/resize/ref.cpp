// The scalar reference: every other kernel gives these bytes.
#include "variants.h"

namespace int8d {

void resize_columns_ref(const uint8_t* in, ptrdiff_t pixel, std::span<const Blend> columns, int c, int32_t* out) {
  for (const Blend& b : columns)
    for (int i = 0; i < c; ++i)
      *out++ = (2048 - b.weight) * in[b.low * pixel + i] + b.weight * in[b.high * pixel + i] + (1 << 10);
}

void resize_rows_ref(const int32_t* low, const int32_t* high, int32_t weight, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(((2048 - weight) * low[i] + weight * high[i]) >> 22);
}

}  // namespace int8d
