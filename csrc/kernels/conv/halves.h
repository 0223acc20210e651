// Addressing the rows of a tile: two halves of up to 7 rows, each with a base address and a common stride. 0 .. 6 times
// the stride needs three registers (s, 3s, 5s).
#pragma once
#include <cstddef>
#include <cstdint>

#include "../common/unroll.h"

namespace int8d {

constexpr int kHalf = 7;

struct Strides {
  ptrdiff_t s, s3, s5;
  explicit Strides(ptrdiff_t stride) : s(stride), s3(3 * stride), s5(5 * stride) {
    asm("" : "+r"(s), "+r"(s3), "+r"(s5));  // keep the multiples in registers, not 14 pointers
  }
};

template <int P>
INT8D_INLINE inline const uint8_t* at_row(const uint8_t* base, const Strides& k) {
  if constexpr (P == 0) return base;
  if constexpr (P == 1) return base + k.s;
  if constexpr (P == 2) return base + 2 * k.s;
  if constexpr (P == 3) return base + k.s3;
  if constexpr (P == 4) return base + 4 * k.s;
  if constexpr (P == 5) return base + k.s5;
  if constexpr (P == 6) return base + 2 * k.s3;
}

// Row P of a tile whose first half has A rows.
template <int P, int A>
INT8D_INLINE inline const uint8_t* at_row(const uint8_t* a, const uint8_t* b, const Strides& k) {
  if constexpr (P < A)
    return at_row<P>(a, k);
  else
    return at_row<P - A>(b, k);
}

}  // namespace int8d
