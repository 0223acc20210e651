// A view of an NHWC tensor of bytes in the arena.
#pragma once
#include <cstddef>
#include <cstdint>

namespace int8d {

// `data` points at element (0, 0, 0, 0). The halo, where the tensor has one, lies at negative offsets and past the
// end of each row, and holds the zero point. Strides are in bytes (an element is one byte). A reader may read up to
// kOverread bytes past any element of the tensor or its halo, but must not let those bytes change a result.
inline constexpr ptrdiff_t kOverread = 64;

struct View {
  uint8_t* data = nullptr;
  ptrdiff_t image = 0;  // from one batch element to the next
  ptrdiff_t row = 0;    // from one row to the next
  ptrdiff_t pixel = 0;  // from one column to the next: the number of channels

  uint8_t* at(ptrdiff_t n, ptrdiff_t y, ptrdiff_t x) const { return data + n * image + y * row + x * pixel; }
};

}  // namespace int8d
