// The epilogue of numerics.md: requantize, then the optional residual. The scalar form that every kernel must equal.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace int8d {

// q = clamp(rint(float(acc) * m), lo - zp, hi - zp) + zp, all in canonical u8 units. The current rounding mode
// must be to nearest even, which is the default of every thread.
inline uint8_t requantize(int32_t acc, float m, int32_t lo, int32_t hi, int32_t zp) {
  float v = std::nearbyintf(static_cast<float>(acc) * m);
  v = std::min(std::max(v, static_cast<float>(lo - zp)), static_cast<float>(hi - zp));
  return static_cast<uint8_t>(static_cast<int32_t>(v) + zp);
}

// A quantized elementwise sum: t = float(q1 - zp1) * f1, u = float(q2 - zp2) * f2, q = clamp(rint(t + u)) + zp.
// Two products and one sum, each rounded: build with -ffp-contract=off.
struct AddParams {
  int32_t zp1 = 0, zp2 = 0;
  float f1 = 1, f2 = 1;
  int32_t lo = 0, hi = 255, zp = 0;
};

inline uint8_t add_quantized(uint8_t q1, uint8_t q2, const AddParams& p) {
  float t = static_cast<float>(q1 - p.zp1) * p.f1;
  float u = static_cast<float>(q2 - p.zp2) * p.f2;
  float v = std::nearbyintf(t + u);
  v = std::min(std::max(v, static_cast<float>(p.lo - p.zp)), static_cast<float>(p.hi - p.zp));
  return static_cast<uint8_t>(static_cast<int32_t>(v) + p.zp);
}

// What becomes of an accumulator, in order: requantized, then added to a residual, then looked up in a table.
struct Output {
  int32_t lo = 0, hi = 255, zp = 0;
  const AddParams* add = nullptr;  // optional
  const uint8_t* table = nullptr;  // optional, [256]
};

inline uint8_t finish(int32_t acc, float m, uint8_t residual, const Output& o) {
  uint8_t q = requantize(acc, m, o.lo, o.hi, o.zp);
  if (o.add) q = add_quantized(q, residual, *o.add);
  return o.table ? o.table[q] : q;
}

// Whether the sum t + u can be rounded to int32 before it is clamped: vector kernels save an operation where it can.
inline bool is_narrow(const AddParams& p) { return 255 * (std::fabs(p.f1) + std::fabs(p.f2)) < 0x1p30f; }

}  // namespace int8d
