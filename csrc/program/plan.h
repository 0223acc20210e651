// From a sketch to a program: fusion, halos, places in the arena, and steps bound to addresses.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "../kernels/common/aligned.h"
#include "ops.h"
#include "program.h"
#include "team.h"

namespace int8d {

// Where a tensor lies: its slot in the arena and the halo around each of its maps, in pixels.
struct Place {
  int top = 0, left = 0, bottom = 0, right = 0;
  int root = -1;      // the tensor whose slot it shares: itself, or, behind a step that is no work, the source
  size_t shift = 0;   // of its first element from that tensor's, in bytes
  size_t offset = 0;  // of element (0, 0, 0, 0)

  bool halo() const { return top || left || bottom || right; }
};

// Weights that a step reads: each worker all of them, or, by panels, a share of its own.
struct Weights {
  const uint8_t* data = nullptr;
  size_t bytes = 0;
  bool by_panels = false;

  std::span<const uint8_t> of(int worker, int workers) const {
    if (!by_panels) return {data, bytes};
    const size_t begin = bytes * static_cast<size_t>(worker) / static_cast<size_t>(workers);
    return {data + begin, bytes * static_cast<size_t>(worker + 1) / static_cast<size_t>(workers) - begin};
  }
};

// One worker's share of a step. Bound to addresses; called by every worker of the team.
using Work = std::function<void(int worker, int workers)>;

struct Step {
  StepInfo info;
  Work work;
  size_t index = 0;    // into Program::Impl::infos
  bool small = false;  // not worth sharing: worker 0 does it alone
  bool meets = true;   // whether the team meets behind it
  Weights weights{};

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
  std::vector<Weights> ahead;  // by operator: what the next step reads, for this one to fetch
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

// For each operator the sum or the table that could take it over, or -1.
std::vector<int> find_takers(const Sketch& sketch);
// For each operator the one that does take it over, or -1: by its choice, its kernel, and which others could be.
std::vector<int> find_fusions(const Sketch& sketch, const std::vector<int>& takers);

// How a convolution is divided, where `wanted` may be impossible.
Split resolve_split(Split wanted, const ConvShape& shape, int panels, int workers);
std::vector<Option> options_of(const Sketch& sketch);

// Whether an operator may be no work at all: its output's elements lie in its input as they are. If so, `first` is the
// first of them.
bool is_run(const Op& op, int64_t& first);
// Copies a constant to its place (move_steps.cpp).
void lay(const Program::Impl& program, const Fixed& constant);

// What a step does, and the kernel's name for people.
struct Bound {
  const char* kernel = "";
  Work work{};
};
// Of an operator that only moves or picks elements; no work for any other (move_steps.cpp).
Bound bind_move(const Program::Impl& program, const Op& op);

// Appends the steps that run `op` (steps.cpp); `taker` is the sum or the table fused into a
// convolution, or null.
Step bind(const Program::Impl& program, const Op& op, const Op* taker);
Work copy_in(const Program::Impl& program, size_t input);
Work copy_out(const Program::Impl& program, size_t output);

}  // namespace int8d
