// Product of two activations (matmul_ymm.h), AVX-VNNI: one vpdpbusd a step and vector.
#include "matmul_ymm.h"

namespace int8d {
namespace {

struct Dot {
  static constexpr bool kWords = false;
  static constexpr int kStep = 4;
  static void add(__m256i& sum, __m256i x, __m256i b) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(b));
  }
};

}  // namespace

void matmul_u8u8_6x16_avxvnni(const MatmulCall& call) { run_matmul<Dot>(call); }

}  // namespace int8d
