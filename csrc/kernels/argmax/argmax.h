// The first of the largest of some bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"

namespace int8d {

struct ArgMaxKernel {
  const char* name;
  Isa isa;
  // rows of `count` bytes, 1 or more, end to end; read up to kOverread bytes too far. One index a row.
  void (*run)(const uint8_t* in, size_t rows, size_t count, int32_t* out);
};

std::span<const ArgMaxKernel> argmax_kernels();
const ArgMaxKernel& argmax_kernel(Isa);

}  // namespace int8d
