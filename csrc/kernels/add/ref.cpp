// The scalar reference: every other kernel gives these bytes.
#include "variants.h"

namespace int8d {

void add_u8_ref(const uint8_t* a, const uint8_t* b, uint8_t* out, size_t count, const AddParams& p) {
  for (size_t i = 0; i < count; ++i) out[i] = add_quantized(a[i], b[i], p);
}

}  // namespace int8d
