// Loops that are unrolled while compiling.
#pragma once
#include <type_traits>
#include <utility>

#define INT8D_INLINE __attribute__((always_inline))

namespace int8d {

// f(0), f(1) … with constant arguments. Accumulators are only ever reached through constant indices, in code that is
// inlined early: otherwise g++ 12 keeps their array in memory, and stores and reloads all of it at every tile.
template <int N, typename F>
INT8D_INLINE inline void unroll(F f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      INT8D_INLINE { (f(std::integral_constant<int, I>()), ...); }(std::make_integer_sequence<int, N>());
}

}  // namespace int8d
