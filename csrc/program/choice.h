// What can be chosen for an operator without changing a byte of its result: the words that the tuner, the builder and
// the plan share.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace int8d {

// How a convolution is divided among the workers: by rows of its output, each worker with all weights, or by panels of
// output channels, each worker with its own weights.
enum class Split { automatic, rows, panels };

const char* split_name(Split);  // "auto", "rows", "panels"
std::optional<Split> split_named(std::string_view name);

// A default constructed one is the default. What an operator can't have is passed over without an error: a choice may
// be older than the kernels.
struct Choice {
  std::string kernel;  // by name; empty: the usual one for the shape
  Split split = Split::automatic;
  bool fused = true;  // into the sum or the table that can take it over
};

// An operator with more than one possibility.
struct Option {
  std::string op;
  std::string taker;               // the sum or the table that could take it over, or empty
  std::vector<Choice> candidates;  // the default first, then the most promising
};

// The candidates with the kernel of that name before the others, if it is among them.
template <typename Kernel>
std::vector<const Kernel*> preferring(std::vector<const Kernel*> candidates, const std::string& name) {
  const auto found =
      std::find_if(candidates.begin(), candidates.end(), [&](const Kernel* kernel) { return name == kernel->name; });
  if (found != candidates.end()) std::rotate(candidates.begin(), found, found + 1);
  return candidates;
}

}  // namespace int8d
