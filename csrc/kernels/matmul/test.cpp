// Every product of activations gives the reference's bytes, for all tails, reads no further than kOverread, writes only
// its rows.
#include <algorithm>

#include "../../testing.h"
#include "../common/view.h"
#include "matmul.h"

namespace int8d::testing {

TEST(matmul_kernels_give_the_reference_bytes) {
  Random r(31);
  for (int round = 0; round < 400; ++round) {
    const bool large = round % 20 == 0;
    const MatmulShape s{r.in(1, large ? 200 : 40), r.in(1, large ? 300 : 140), r.in(1, large ? 200 : 80),
                        r.in(0, 1) == 1};
    const size_t a_bytes = static_cast<size_t>(s.m) * s.k, b_bytes = static_cast<size_t>(s.k) * s.n,
                 count = static_cast<size_t>(s.m) * s.n;
    Guarded a(a_bytes + kOverread, r.flush()), b(b_bytes + kOverread, r.flush());
    r.fill(a.data(), a_bytes + kOverread);
    r.fill(b.data(), b_bytes + kOverread);
    auto zero_point = [&] { return r.in(0, 2) ? r.in(0, 255) : r.in(0, 2) * 255 / 2; };
    const int lo = r.in(0, 100), hi = r.in(lo, 255);
    MatmulParams p{zero_point(), zero_point(), r.real(1e-5f, 0.02f), lo, hi, r.in(0, 255)};
    if (r.in(0, 9) == 0) p.multiplier = 1e30f;  // the product leaves int32
    std::vector<uint8_t> expected;
    for (const MatmulKernel& kernel : matmul_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      Guarded scratch((kernel.scratch(s) + 63) / 64 * 64), out(count, r.flush());
      r.fill(scratch.data(), kernel.scratch(s));
      std::memset(out.data(), 0xaa, count);
      const int cut = r.in(0, s.m);  // in pieces, as threads would
      MatmulCall call{s, a.data(), b.data(), out.data(), cut, s.m, scratch.data(), &p};
      if (cut < s.m) kernel.run(call);
      call.row_begin = 0;
      call.row_end = cut;
      if (cut > 0) kernel.run(call);
      if (kernel.isa == Isa::ref) expected.assign(out.data(), out.data() + count);
      CHECK(std::memcmp(expected.data(), out.data(), count) == 0, "%s, round %d: [%d, %d] x [%d, %d], transposed: %d",
            kernel.name, round, s.m, s.k, s.k, s.n, s.transpose_b);
    }
  }
}

TEST(matmul_sums_may_reach_the_ends_of_int32) {
  Random r(32);
  const MatmulShape s{2, 33000, 3, false};
  Guarded a(static_cast<size_t>(s.m) * s.k + kOverread), b(static_cast<size_t>(s.n) * s.k + kOverread);
  std::memset(a.data(), 255, static_cast<size_t>(s.m) * s.k);
  std::fill_n(a.data(), s.k, uint8_t{0});
  for (int i = 0; i < s.k * s.n; ++i) b.data()[i] = i % 3 == 0 ? 255 : 0;
  for (const int zp_a : {0, 255})
    for (const int zp_b : {0, 255}) {
      const MatmulParams p{zp_a, zp_b, 1e-7f, 0, 255, 128};
      std::vector<uint8_t> expected;
      for (const MatmulKernel& kernel : matmul_kernels()) {
        if (!isa_supported(kernel.isa)) continue;
        Guarded scratch((kernel.scratch(s) + 63) / 64 * 64);
        uint8_t out[6];
        kernel.run({s, a.data(), b.data(), out, 0, s.m, scratch.data(), &p});
        if (kernel.isa == Isa::ref) expected.assign(out, out + 6);
        CHECK(std::memcmp(expected.data(), out, 6) == 0, "%s, zero points %d, %d", kernel.name, zp_a, zp_b);
      }
    }
}

}  // namespace int8d::testing
