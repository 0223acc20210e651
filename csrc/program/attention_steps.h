// The steps of attention's operators.
#pragma once
#include "plan.h"

namespace int8d {

Work softmax_work(const Program::Impl& program, const Op& op, const SoftmaxOp& softmax);
Work layer_norm_work(const Program::Impl& program, const Op& op, const LayerNormOp& norm);
Work matmul_work(const Program::Impl& program, const Op& op, const MatmulOp& matmul);

}  // namespace int8d
