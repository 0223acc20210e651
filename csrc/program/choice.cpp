#include "choice.h"

#include "plan.h"

namespace int8d {
namespace {

constexpr const char* kNames[] = {"auto", "rows", "panels"};

// Every kernel with every split; then, alone, the usual one on its own where it would be fused.
template <typename Kernel>
std::vector<Choice> candidates_of(const std::vector<const Kernel*>& kernels, const std::vector<Split>& splits,
                                  bool fused) {
  std::vector<Choice> candidates;
  for (const Split split : splits)
    for (const Kernel* kernel : kernels) candidates.push_back({kernel == kernels[0] ? "" : kernel->name, split});
  if (fused) candidates.push_back({"", Split::automatic, false});
  return candidates;
}

}  // namespace

const char* split_name(Split split) { return kNames[static_cast<size_t>(split)]; }

std::optional<Split> split_named(std::string_view name) {
  for (const Split split : {Split::automatic, Split::rows, Split::panels})
    if (name == split_name(split)) return split;
  return std::nullopt;
}

Split resolve_split(Split wanted, const ConvShape& shape, int panels, int workers) {
  if (panels < workers || workers == 1) return Split::rows;
  if (wanted != Split::automatic) return wanted;
  // Small maps have many channels: there, each worker streams its own share of the weights.
  return shape.oh <= 14 ? Split::panels : Split::rows;
}

std::vector<Option> options_of(const Sketch& sketch) {
  const std::vector<int> takers = find_takers(sketch), into = find_fusions(sketch, takers);
  std::vector<Option> options;
  for (size_t i = 0; i < sketch.ops.size(); ++i) {
    const Op& op = sketch.ops[i];
    Option option{op.name, takers[i] < 0 ? "" : sketch.ops[static_cast<size_t>(takers[i])].name, {}};
    if (const auto* conv = std::get_if<ConvOp>(&op.params)) {
      std::vector<Split> splits{Split::automatic};
      const int panels = conv->kernels[0]->panels(conv->shape);
      if (panels >= sketch.threads && sketch.threads > 1) {
        const bool rows = resolve_split(Split::automatic, conv->shape, panels, sketch.threads) == Split::rows;
        splits.push_back(rows ? Split::panels : Split::rows);
      }
      option.candidates = candidates_of(conv->kernels, splits, into[i] >= 0);
    } else if (const auto* dw = std::get_if<DepthwiseOp>(&op.params)) {
      option.candidates = candidates_of(dw->kernels, {Split::automatic}, into[i] >= 0);
    }
    if (option.candidates.size() > 1) options.push_back(std::move(option));
  }
  return options;
}

}  // namespace int8d
