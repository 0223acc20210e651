// The scalar reference: every other kernel gives these bytes.
#include "variants.h"

namespace int8d {

void lut_u8_ref(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table) {
  for (size_t i = 0; i < count; ++i) out[i] = table[in[i]];
}

}  // namespace int8d
