// Any unary function of a byte, as a table of 256 entries.
#pragma once
#include <cstddef>
#include <cstdint>

namespace int8d {

inline void lut_u8(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table) {
  for (size_t i = 0; i < count; ++i) out[i] = table[in[i]];
}

}  // namespace int8d
