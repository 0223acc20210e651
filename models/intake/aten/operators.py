"""Which of torch's operators are what: the words that the quantizer and the intake share."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch.fx import Node

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = quantized.dequantize_per_channel.default


def _overloads(*names: str) -> frozenset[Any]:
    """Every overload of the operators, and of their in-place forms."""
    found = set()
    for name in names:
        for packet in (getattr(aten, name, None), getattr(aten, f"{name}_", None)):
            if packet is not None:
                found |= {getattr(packet, o) for o in packet.overloads() if "out" not in o}
    return frozenset(found)


CONVOLUTIONS = _overloads("conv1d", "conv2d")
TRANSPOSED = frozenset({aten.conv_transpose2d.input})
LINEAR = frozenset({aten.linear.default})
WEIGHTED = CONVOLUTIONS | TRANSPOSED | LINEAR
MATMULS = frozenset({aten.matmul.default, aten.bmm.default, aten.mm.default})
CLAMPS = _overloads("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max") - {
    aten.clamp.Tensor, aten.clamp_.Tensor, aten.clamp_min.Tensor, aten.clamp_min_.Tensor, aten.clamp_max.Tensor,
    aten.clamp_max_.Tensor,
}  # fmt: skip
SUMS = _overloads("add", "sub", "rsub")
PRODUCTS = _overloads("mul")
QUOTIENTS = frozenset({aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar})
# Of one activation; what else they take are numbers.
UNARY = CLAMPS | _overloads(
    "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "leaky_relu", "elu", "selu", "celu", "mish",
    "softplus", "softsign", "log_sigmoid", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "abs", "neg",
    "square", "sign", "floor", "ceil", "round", "erf", "sin", "cos", "prelu", "hardshrink", "softshrink", "threshold",
    "pow",
) - {aten.pow.Tensor_Tensor, aten.pow_.Tensor, aten.pow.Scalar}  # fmt: skip
POINTWISE = UNARY | SUMS | PRODUCTS | QUOTIENTS
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
NORMS = frozenset({aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default})
MEANS = frozenset({aten.mean.dim, aten.mean.default})
AVERAGES = MEANS | {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
RESIZES = frozenset({aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec,
                     aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default})  # fmt: skip
CONCATS = frozenset({aten.cat.default, aten.stack.default})
IDENTITIES = _overloads("dropout", "alpha_dropout", "feature_dropout") | {
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.detach_.default,
    aten.lift_fresh_copy.default, aten.dropout.default, aten.native_dropout.default, aten.positive.default,
}  # fmt: skip
# Elements keep their values; torch's result has them in other places.
RESHAPES = frozenset({
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.unflatten.int, aten.view_as.default,
    aten.reshape_as.default, aten.squeeze_.dim, aten.unsqueeze_.default,
})  # fmt: skip
PERMUTES = frozenset({aten.permute.default, aten.transpose.int, aten.t.default, aten.swapaxes.default,
                      aten.movedim.int, aten.movedim.intlist, aten.adjoint.default, aten.mT.default,
                      aten.numpy_T.default})  # fmt: skip
SPLITS = frozenset({aten.chunk.default, aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default,
                    aten.unbind.int, aten.tensor_split.sections})  # fmt: skip
MOVES = RESHAPES | PERMUTES | IDENTITIES | {
    aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.expand.default, aten.expand_as.default,
    aten.roll.default, aten.flip.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.channel_shuffle.default, aten.repeat.default,
}  # fmt: skip
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default, aten.zero_pad2d.default}
                 if hasattr(aten, "zero_pad2d") else {aten.pad.default, aten.constant_pad_nd.default})  # fmt: skip
MAX_POOLS = frozenset({aten.max_pool2d.default, aten.max_pool1d.default})


def shape_of(node: Node) -> tuple[int, ...]:
    """What the node gives, in torch's order; of several outputs, the first's."""
    return shapes_of(node)[0]


def shapes_of(node: Node) -> list[tuple[int, ...]]:
    """The shape of each output."""
    meta = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
    outputs = list(meta) if isinstance(meta, (list, tuple)) and not hasattr(meta, "shape") else [meta]
    return [tuple(o.shape) for o in outputs]


def dtypes_of(node: Node) -> list[torch.dtype]:
    """The dtype of each output."""
    meta = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
    outputs = list(meta) if isinstance(meta, (list, tuple)) and not hasattr(meta, "shape") else [meta]
    return [o.dtype for o in outputs]


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, however it was given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def functional(target: Any) -> Any:
    """The operator that computes what ``target`` does without changing its argument; None where there is none."""
    if not target._schema.is_mutable:
        return target
    packet = getattr(aten, target._schema.name.removeprefix("aten::").rstrip("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def is_move(node: object) -> bool:
    """Whether the node hands elements on as they are, in other places."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    split = node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].target in SPLITS
    return split or node.target in MOVES or node.target in PADS


def dims_of(node: Node, rank: int) -> tuple[int, ...]:
    """The dims of torch.permute that a node of ``PERMUTES`` stands for."""
    target, rest = node.target, node.args[1:]
    order = list(range(rank))
    if target is aten.permute.default:
        return tuple(d % rank for d in rest[0])
    if target in (aten.movedim.int, aten.movedim.intlist):
        source, to = ([d % rank for d in (w if isinstance(w, (list, tuple)) else [w])] for w in rest)
        left = iter([a for a in order if a not in source])
        return tuple(source[to.index(a)] if a in to else next(left) for a in order)
    if target in (aten.transpose.int, aten.swapaxes.default):
        a, b = (d % rank for d in rest[:2])
    elif target is aten.numpy_T.default:
        return tuple(reversed(order))
    elif rank < 2:
        return tuple(order)
    else:
        a, b = rank - 2, rank - 1
    order[a], order[b] = order[b], order[a]
    return tuple(order)
