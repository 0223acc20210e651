// A program: a graph turned into a fixed list of steps over one arena. Built once, run many times.
//
// A Builder takes tensors and operators in order of execution, checks them (std::invalid_argument, with the operator's
// name), and chooses a kernel for each. build() packs the weights, fuses, gives every tensor its place, and binds the
// kernels to addresses; run() only calls them: it allocates nothing, knows no shapes and throws nothing.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../kernels/common/isa.h"
#include "choice.h"

namespace int8d {

enum class Dtype { u8, s32, f32 };

struct StepInfo {
  std::vector<std::string> names;  // of the operators that the step does: two where one is fused into the other
  std::string kernel;
  int64_t macs = 0;
  Split split = Split::automatic;  // automatic where there is one way only
};

class Program {
 public:
  struct Impl;
  explicit Program(std::unique_ptr<Impl> impl);
  ~Program();

  // One pointer an input and an output, in the order they were named; contiguous, in the tensor's dtype.
  // Calls from several threads take turns.
  void run(const void* const* inputs, void* const* outputs);

  // As run(), and the time of each step in nanoseconds, waiting for the last worker included: [steps().size()], 0 for
  // a step that is no work. What it costs to copy the inputs in and the outputs out counts with the first and the last.
  void profile(const void* const* inputs, void* const* outputs, int64_t* nanoseconds);

  const std::vector<StepInfo>& steps() const;
  size_t input_bytes(size_t i) const;
  size_t output_bytes(size_t i) const;
  size_t inputs() const;
  size_t outputs() const;
  size_t arena_bytes() const;
  size_t weight_bytes() const;
  int threads() const;
  Isa isa() const;

 private:
  friend class Builder;
  std::unique_ptr<Impl> impl_;
};

struct WindowDef {
  std::array<int, 2> kernel{1, 1}, stride{1, 1}, dilation{1, 1};  // y, x
  std::array<int, 4> padding{0, 0, 0, 0};                         // top, left, bottom, right
};

// Read by build(): what the spans refer to must live until then.
struct WeightsDef {
  std::span<const int8_t> weight;
  std::span<const int32_t> bias;
  std::span<const float> multiplier;
  int lo = 0, hi = 255;
  std::span<const int16_t> rest{};  // as ConvDef's
};

class Builder {
 public:
  // isa: "auto" or a name, see resolve_isa. threads: workers, the caller among them.
  // spin: how long a waiting worker spins before it sleeps.
  Builder(std::string_view isa, int threads, std::chrono::microseconds spin = std::chrono::microseconds(50));
  ~Builder();

  // Operators take what `program` has packed for those of the same names, where it fits: their weights, biases,
  // multipliers and quantizations are the same. The program must outlive build().
  void share(const Program& program);

  // Tensors are named by the number that this returns. u8 tensors are in canonical form; 4-D ones are NHWC.
  int tensor(const std::vector<int64_t>& shape, Dtype dtype, int zero_point);
  // flip: the caller's bytes are s8, q - 128.
  void input(int tensor, bool flip);
  void output(int tensor, bool flip);

  // What the operator of that name, added later, shall be.
  void choose(const std::string& name, Choice choice);
  // The operators added so far that have more than one possibility.
  std::vector<Option> options() const;

  void conv2d(const std::string& name, int in, int out, const WeightsDef&, const WindowDef&, int groups);
  void linear(const std::string& name, int in, int out, const WeightsDef&);
  void max_pool2d(const std::string& name, int in, int out, const WindowDef&);
  void avg_pool2d(const std::string& name, int in, int out, const WindowDef&, bool count_include_pad,
                  std::span<const float> multipliers, int lo, int hi);
  // f2 is negative for a difference.
  void add(const std::string& name, int a, int b, int out, float f1, float f2, int lo, int hi);
  // b has the shape of a and out, or is [n, 1, 1, c].
  void mul(const std::string& name, int a, int b, int out, float multiplier, int lo, int hi);
  void lut(const std::string& name, int in, int out, std::span<const uint8_t> table);
  // tables: one of 256 entries an input, or an empty one where its quantization is the output's.
  void concat(const std::string& name, std::span<const int> in, int out, int axis,
              const std::vector<std::span<const uint8_t>>& tables);
  void reshape(const std::string& name, int in, int out);

  // These keep the quantization. Axis i of the output is axis axes[i] of the input.
  void transpose(const std::string& name, int in, int out, std::span<const int> axes);
  // Element i of an axis is the input's begin + i * step.
  void slice(const std::string& name, int in, int out, std::span<const int64_t> begin, std::span<const int64_t> step);
  // Axes of extent 1 are repeated to the output's extent.
  void expand(const std::string& name, int in, int out);
  // u8. `value` before, behind and, `interior` times, between the elements of each axis.
  void pad(const std::string& name, int in, int out, std::span<const int64_t> before, std::span<const int64_t> after,
           std::span<const int64_t> interior, int value);
  // rows: [oh, 3], columns: [ow, 3] of (low, high, weight of high in 2048ths).
  void resize2d(const std::string& name, int in, int out, std::span<const int32_t> rows,
                std::span<const int32_t> columns);
  // u8 to s32: the index of the first largest element of the last axis.
  void argmax(const std::string& name, int in, int out);
  // bytes: of all elements, in row-major order; copied.
  void constant(const std::string& name, int out, std::span<const uint8_t> bytes);

  void quantize(const std::string& name, int in, int out, float scale);
  void dequantize(const std::string& name, int in, int out, float scale);

  // a: [..., m, k], b: [..., k, n] or, transposed, [..., n, k].
  void matmul(const std::string& name, int a, int b, int out, bool transpose_b, float multiplier, int lo, int hi);
  // epsilon: times n^2 / sx^2; gamma, beta: divided by the output's scale.
  void layer_norm(const std::string& name, int in, int out, double epsilon, std::span<const float> gamma,
                  std::span<const float> beta, int lo, int hi);
  // To f32, or to u8 of that scale.
  void softmax(const std::string& name, int in, int out, std::span<const int32_t> table, float scale);

  std::unique_ptr<Program> build();  // once

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace int8d
