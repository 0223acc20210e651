// Runs what plan.cpp has built.
#include "program.h"

#include <algorithm>

#include "plan.h"

namespace int8d {

View Program::Impl::view(int tensor) const {
  const Tensor& t = sketch.tensors[static_cast<size_t>(tensor)];
  const Place& p = places[static_cast<size_t>(tensor)];
  View v;
  // Kernels write through the views of their outputs; the arena is the program's own.
  v.data = const_cast<uint8_t*>(arena.data()) + p.offset;
  v.pixel = static_cast<ptrdiff_t>(t.c) * static_cast<ptrdiff_t>(t.element());
  v.row = v.pixel * (t.w + p.left + p.right);
  v.image = v.row * (t.h + p.top + p.bottom);
  return v;
}

Program::Program(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Program::~Program() = default;

void Program::run(const void* const* inputs, void* const* outputs) {
  Impl& p = *impl_;
  const std::lock_guard lock(p.mutex);
  p.inputs = inputs;
  p.outputs = outputs;
  p.team.run(
      [](void* context, int worker, Team& team) {
        const Impl& program = *static_cast<const Impl*>(context);
        for (const Step& step : program.steps) step.run(worker, team);
      },
      &p);
}

void Program::profile(const void* const* inputs, void* const* outputs, int64_t* nanoseconds) {
  Impl& p = *impl_;
  const std::lock_guard lock(p.mutex);
  p.inputs = inputs;
  p.outputs = outputs;
  std::fill_n(nanoseconds, p.infos.size(), 0);
  struct Context {
    const Impl& program;
    int64_t* nanoseconds;
  } context{p, nanoseconds};
  p.team.run(
      [](void* opaque, int worker, Team& team) {
        const Context& c = *static_cast<const Context*>(opaque);
        auto last = std::chrono::steady_clock::now();
        for (const Step& step : c.program.steps) {
          step.run(worker, team);
          if (worker != 0) continue;
          const auto now = std::chrono::steady_clock::now();
          c.nanoseconds[step.index] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
          last = now;
        }
      },
      &context);
}

const std::vector<StepInfo>& Program::steps() const { return impl_->infos; }
size_t Program::inputs() const { return impl_->sketch.inputs.size(); }
size_t Program::outputs() const { return impl_->sketch.outputs.size(); }
size_t Program::input_bytes(size_t i) const {
  return impl_->sketch.tensors[static_cast<size_t>(impl_->sketch.inputs[i].tensor)].bytes();
}
size_t Program::output_bytes(size_t i) const {
  return impl_->sketch.tensors[static_cast<size_t>(impl_->sketch.outputs[i].tensor)].bytes();
}
size_t Program::arena_bytes() const { return impl_->arena.bytes(); }
size_t Program::weight_bytes() const { return impl_->weight_bytes; }
int Program::threads() const { return impl_->team.workers(); }
Isa Program::isa() const { return impl_->sketch.isa; }

}  // namespace int8d
