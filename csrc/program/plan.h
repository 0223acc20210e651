// From a sketch to a program: fusion, halos, places in the arena, and steps bound to addresses.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "../kernels/common/aligned.h"
#include "ops.h"
#include "program.h"
#include "team.h"

namespace int8d {

// Where a tensor lies: its slot in the arena and the halo around each of its maps, in pixels.
struct Place {
  int top = 0, left = 0, bottom = 0, right = 0;
  int root = -1;      // the tensor whose slot it shares: itself, or, behind a reshape, the source
  size_t offset = 0;  // of element (0, 0, 0, 0)

  bool halo() const { return top || left || bottom || right; }
};

// One worker's share of a step. Bound to addresses; called by every worker of the team.
using Work = std::function<void(int worker, int workers)>;

struct Step {
  StepInfo info;
  Work work;
  size_t index = 0;    // into Program::Impl::infos
  bool small = false;  // not worth sharing: worker 0 does it alone
  bool meets = true;   // whether the team meets behind it

  void run(int worker, Team& team) const {
    if (!small)
      work(worker, team.workers());
    else if (worker == 0)
      work(0, 1);
    if (meets) team.barrier();
  }
};

struct Program::Impl {
  Sketch sketch;
  std::vector<Place> places;
  Aligned<uint8_t> arena;
  std::vector<Step> steps;
  std::vector<StepInfo> infos;
  size_t weight_bytes = 0;
  size_t scratch_bytes = 0;  // of one worker
  Aligned<uint8_t> scratch;
  Team team;
  std::mutex mutex;
  // The caller's arrays, while run() works.
  const void* const* inputs = nullptr;
  void* const* outputs = nullptr;

  Impl(Sketch s, std::vector<Place> p, size_t bytes)
      : sketch(std::move(s)), places(std::move(p)), arena(bytes), team(sketch.threads, sketch.spin) {}

  View view(int tensor) const;
  uint8_t* scratch_of(int worker) const {
    return const_cast<uint8_t*>(scratch.data()) + static_cast<size_t>(worker) * scratch_bytes;
  }
};

std::unique_ptr<Program::Impl> plan(Sketch sketch);

// Appends the steps that run `op` (steps.cpp); `taker` is the sum or the table fused into a
// convolution, or null.
Step bind(const Program::Impl& program, const Op& op, const Op* taker);
Work copy_in(const Program::Impl& program, size_t input);
Work copy_out(const Program::Impl& program, size_t output);

}  // namespace int8d
