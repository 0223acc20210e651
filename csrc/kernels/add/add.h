// Elementwise quantized sum of two contiguous runs of bytes (the residual of a block).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "../common/isa.h"
#include "../common/requant.h"

namespace int8d {

struct AddKernel {
  const char* name;
  Isa isa;
  void (*run)(const uint8_t* a, const uint8_t* b, uint8_t* out, size_t count, const AddParams&);
};

std::span<const AddKernel> add_kernels();
const AddKernel& add_kernel(Isa);

}  // namespace int8d
