// Any unary function of a byte, as a table of 256 entries.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

struct LutKernel {
  const char* name;
  Isa isa;
  void (*run)(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* table);
};

std::span<const LutKernel> lut_kernels();
const LutKernel& lut_kernel(Isa);

}  // namespace int8d
