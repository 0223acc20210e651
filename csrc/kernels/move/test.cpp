// Every strided copy gives the reference's bytes, reads no further than kOverread, writes only its elements.
#include <algorithm>
#include <numeric>

#include "../../testing.h"
#include "../common/view.h"
#include "move.h"

namespace int8d::testing {
namespace {

struct Case {
  MoveShape shape;
  ptrdiff_t in_bytes, out_bytes, in_begin;
};

// A dense tensor with its axes in any order, some of them repeated, stepped over or flipped, into a tensor that may
// have gaps behind its rows and between its elements.
Case random_case(Random& r, bool large) {
  const int rank = large ? r.in(1, 3) : r.in(1, kMoveRank);
  std::vector<int64_t> count, extent, step;
  for (int i = 0; i < rank; ++i) {
    const int kind = r.in(0, 9);
    count.push_back(large ? r.in(1, 150) : r.in(1, 4));
    step.push_back(kind < 6 ? 1 : kind == 6 ? 0 : kind == 7 ? 2 : kind == 8 ? -1 : -3);
    extent.push_back(step.back() == 0 ? 1 : (count.back() - 1) * std::abs(step.back()) + 1 + (kind == 5));
  }
  Case c;
  MoveShape& s = c.shape;
  s.element = r.in(0, 2) ? 1 : 4;
  const auto element = static_cast<ptrdiff_t>(s.element);
  std::vector<size_t> order(static_cast<size_t>(rank));  // of the input's axes
  std::iota(order.begin(), order.end(), size_t{0});
  if (r.in(0, 3)) std::shuffle(order.begin(), order.end(), r.engine);
  std::vector<ptrdiff_t> in(order.size()), out(order.size());
  c.in_bytes = element;
  c.in_begin = 0;
  for (size_t i = order.size(); i-- > 0;) {
    const size_t axis = order[i];
    in[axis] = c.in_bytes * step[axis];
    if (step[axis] < 0) c.in_begin -= in[axis] * (count[axis] - 1);
    c.in_bytes *= extent[axis];
  }
  c.out_bytes = element * (r.in(0, 9) ? 1 : 2);
  for (size_t i = order.size(); i-- > 0;) {
    out[i] = c.out_bytes;
    c.out_bytes *= count[i] + (r.in(0, 9) ? 0 : 1);
  }
  for (size_t i = 0; i < order.size(); ++i) s.loop(count[i], in[i], out[i]);
  return c;
}

}  // namespace

TEST(move_kernels_give_the_reference_bytes) {
  Random r(31);
  for (int round = 0; round < 3000; ++round) {
    const Case c = random_case(r, round % 3 == 0);
    if (c.in_bytes > (1 << 22) || c.out_bytes > (1 << 22)) continue;
    Guarded in(static_cast<size_t>(c.in_bytes + kOverread), r.flush());
    r.fill(in.data(), static_cast<size_t>(c.in_bytes + kOverread));
    std::vector<uint8_t> expected;
    for (const MoveKernel& kernel : move_kernels()) {
      if (!isa_supported(kernel.isa)) continue;
      for (int workers = 1; workers <= 3; ++workers) {
        Guarded out(static_cast<size_t>(c.out_bytes), r.flush());
        std::memset(out.data(), 0xaa, static_cast<size_t>(c.out_bytes));
        const bool whole = kernel.isa == Isa::ref && workers == 1;  // the shape as it is
        const MoveCall call{in.data() + c.in_begin, out.data(), whole ? c.shape : simplify(c.shape)};
        if (whole) kernel.run(call);
        for (int worker = 0; worker < workers && !whole; ++worker) kernel.run(share_of(call, worker, workers));
        if (whole) expected.assign(out.data(), out.data() + c.out_bytes);
        CHECK(std::memcmp(expected.data(), out.data(), expected.size()) == 0, "%s, round %d, %d workers", kernel.name,
              round, workers);
      }
    }
  }
}

TEST(loops_that_run_on_become_one) {
  MoveShape s;
  s.loop(2, 600, 1200), s.loop(1, 7, 9), s.loop(3, 200, 400), s.loop(100, 2, 4);
  const MoveShape one = simplify(s);
  CHECK(one.rank == 1 && one.count[0] == 600 && one.in[0] == 2 && one.out[0] == 4);
  s.loop(5, 1, 1);
  CHECK(simplify(s).rank == 2);
  CHECK(simplify({}).rank == 1 && simplify({}).count[0] == 1);
}

}  // namespace int8d::testing
