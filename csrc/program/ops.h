// The operators as the builder hands them to the plan: checked, a kernel chosen, weights packed (null until build()).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "../kernels/add/add.h"
#include "../kernels/argmax/argmax.h"
#include "../kernels/conv/conv.h"
#include "../kernels/depthwise/depthwise.h"
#include "../kernels/layer_norm/layer_norm.h"
#include "../kernels/linear/linear.h"
#include "../kernels/lut/lut.h"
#include "../kernels/matmul/matmul.h"
#include "../kernels/move/move.h"
#include "../kernels/mul/mul.h"
#include "../kernels/pool/pool.h"
#include "../kernels/resize/resize.h"
#include "../kernels/softmax/softmax.h"
#include "choice.h"
#include "program.h"

namespace int8d {

// A tensor of any rank as NHWC: the last axis is c, the one before it w, and so on; what is left folds into n.
struct Tensor {
  std::vector<int64_t> shape;
  int n = 1, h = 1, w = 1, c = 1;
  Dtype dtype = Dtype::u8;
  int32_t zero_point = 0;

  int64_t count() const { return static_cast<int64_t>(n) * h * w * c; }
  size_t element() const { return dtype == Dtype::u8 ? 1 : 4; }
  size_t bytes() const { return static_cast<size_t>(count()) * element(); }
};

using Table = std::array<uint8_t, 256>;

struct ConvOp {
  ConvShape shape;
  std::vector<const ConvKernel*> kernels;  // those that take the shape, the usual one first
  const ConvKernel* kernel;
  ConvPackedPtr packed;
};
struct DepthwiseOp {
  ConvShape shape;
  std::vector<const DepthwiseKernel*> kernels;
  const DepthwiseKernel* kernel;
  DepthwisePackedPtr packed;
};
struct LinearOp {
  const LinearKernel* kernel;
  ConvPackedPtr packed;
};
struct MaxPoolOp {
  ConvShape shape;
  const PoolKernel* kernel;
};
struct AvgPoolOp {
  ConvShape shape;
  const PoolKernel* kernel;
  AvgPoolParams params;
  std::vector<float> multipliers;
};
struct AddOp {
  AddParams params;
  const AddKernel* kernel;
};
struct MulOp {
  MulParams params;
  const MulKernel* kernel;
};
struct LutOp {
  Table table;
  const LutKernel* kernel;
};
struct ConcatOp {
  int axis;                   // 0..3 of NHWC
  int inner;                  // of the axes that fold into n, those behind the axis: the product of their extents
  std::vector<int> extents;   // along the axis, one an input
  std::vector<Table> tables;  // one an input
  std::vector<bool> plain;    // its table is the identity
  const LutKernel* kernel;
};
struct ReshapeOp {};
// Element i of the output is element begin + i * step of the input, axis by axis.
struct MoveOp {
  struct Axis {
    size_t from;  // the input's axis
    int64_t begin, step;
  };
  std::vector<Axis> axes;  // one an axis of the output
  int64_t run;             // where the output is a run of the input's elements: its first one, or -1
  const MoveKernel* kernel;
};
struct PadOp {
  std::vector<int64_t> before, step;  // element i of the input is the output's at before + i * step
  uint8_t value;
  const MoveKernel* kernel;
};
struct ResizeOp {
  std::vector<Blend> rows, columns;
  bool nearest;
  const ResizeKernel* kernel;
};
struct ArgMaxOp {
  const ArgMaxKernel* kernel;
};
struct QuantizeOp {
  float scale;
};
struct DequantizeOp {
  float scale;
};
struct SoftmaxOp {
  SoftmaxParams params;
  const SoftmaxKernel* kernel;
};
struct LayerNormOp {
  LayerNormParams params;  // gamma and beta are those below
  std::vector<float> gamma, beta;
  const LayerNormKernel* kernel;
};
struct MatmulOp {
  MatmulShape shape;
  MatmulParams params;
  const MatmulKernel* kernel;
};

struct Op {
  std::string name;
  std::vector<int> inputs;
  int output;
  std::variant<ConvOp, DepthwiseOp, LinearOp, MaxPoolOp, AvgPoolOp, AddOp, MulOp, LutOp, ConcatOp, ReshapeOp, MoveOp,
               PadOp, ResizeOp, ArgMaxOp, QuantizeOp, DequantizeOp, SoftmaxOp, LayerNormOp, MatmulOp>
      params;
  Choice choice;
};

struct Border {
  int tensor;
  bool flip;
};

// A tensor that never changes: its bytes in row-major order.
struct Fixed {
  std::string name;
  int tensor;
  std::vector<uint8_t> bytes;
};

// All that a program is made from.
struct Sketch {
  Isa isa;
  int threads;
  std::chrono::microseconds spin;
  std::vector<Tensor> tensors;
  std::vector<Op> ops;
  std::vector<Border> inputs, outputs;
  std::vector<Fixed> constants;
};

}  // namespace int8d
