// The scalar reference: every other kernel gives these numbers.
#include "variants.h"

namespace int8d {

void argmax_u8_ref(const uint8_t* in, size_t rows, size_t count, int32_t* out) {
  for (size_t r = 0; r < rows; ++r, in += count) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i)
      if (in[i] > in[best]) best = i;
    out[r] = static_cast<int32_t>(best);
  }
}

}  // namespace int8d
