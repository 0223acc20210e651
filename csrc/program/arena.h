// Where each tensor lies: one block of memory for all, planned by lifetime.
#pragma once
#include <cstddef>
#include <vector>

namespace int8d {

struct Lifetime {
  size_t bytes = 0;
  int first = 0, last = 0;  // steps, both inclusive
  size_t offset = 0;        // the plan's answer
};

// Gives every lifetime an offset, a multiple of 64, such that two that share a step never share a byte. Greedy by size:
// the largest first, each into the smallest gap that fits among those placed already. Returns the arena's size.
size_t plan_arena(std::vector<Lifetime>& lifetimes);

}  // namespace int8d
