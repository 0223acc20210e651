#include "arena.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace int8d {

size_t plan_arena(std::vector<Lifetime>& lifetimes) {
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  std::vector<const Lifetime*> placed;  // by offset
  size_t total = 0;
  for (size_t index : order) {
    Lifetime& mine = lifetimes[index];
    mine.bytes = (mine.bytes + 63) / 64 * 64;
    size_t best = SIZE_MAX, best_gap = SIZE_MAX, end = 0;
    for (const Lifetime* other : placed) {
      if (other->last < mine.first || mine.last < other->first) continue;
      if (other->offset > end) {
        const size_t gap = other->offset - end;
        if (gap >= mine.bytes && gap < best_gap) best = end, best_gap = gap;
      }
      end = std::max(end, other->offset + other->bytes);
    }
    mine.offset = best == SIZE_MAX ? end : best;
    total = std::max(total, mine.offset + mine.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &mine,
                                   [](const Lifetime* a, const Lifetime* b) { return a->offset < b->offset; }),
                  &mine);
  }
  return total;
}

}  // namespace int8d
