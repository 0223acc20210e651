"""Functions that exporters write out are put together again, so that they are quantized as one.

x * sigmoid(x), x * hardsigmoid(x), GELU by erf, layer norm, and a linear layer's bias. A chain is put together only
where nothing else, a quantization among it, reads what lies between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from models.intake.onnx.translate import DEQUANTIZE

aten = torch.ops.aten
_GATED = {aten.sigmoid.default: aten.silu.default, aten.hardsigmoid.default: aten.hardswish.default}


def fuse(module: GraphModule) -> None:
    """Changes the module."""
    for node in list(module.graph.nodes):
        for match in (_gated, _gelu, _layer_norm, _bias):
            made = match(module, node) if node.op == "call_function" else None
            if made is None:
                continue
            target, args = made
            with module.graph.inserting_before(node):
                fused = module.graph.call_function(target, args)
            fused.meta = dict(node.meta)
            node.replace_all_uses_with(fused)
            break
    module.graph.eliminate_dead_code()
    module.recompile()


Made = tuple[Any, tuple[Any, ...]] | None


def _gated(module: GraphModule, node: Node) -> Made:
    for x, gate in _operands(node, aten.mul.Tensor):
        if isinstance(gate, Node) and gate.target in _GATED and _same(gate.args[0], x) and _inner(gate):
            return _GATED[gate.target], (x,)
    return None


def _gelu(module: GraphModule, node: Node) -> Made:
    """x * 0.5 * (1 + erf(x / sqrt(2))), its three factors in any order."""
    if node.target is not aten.mul.Tensor:
        return None
    factors = list(_factors(node))
    numbers = [f for f in factors if isinstance(f, (int, float))]
    others = [f for f in factors if isinstance(f, Node)]
    if len(others) != 2 or not math.isclose(math.prod(numbers), 0.5, rel_tol=1e-6) or not numbers:
        return None
    for x, gate in (others, others[::-1]):
        for erf, one in _operands(gate, aten.add.Tensor):
            if one != 1 or not (_inner(gate) and isinstance(erf, Node) and erf.target is aten.erf.default):
                continue
            scaled = erf.args[0]
            if not (_inner(erf) and isinstance(scaled, Node) and _inner(scaled) and scaled.args[0] is x):
                continue
            by = scaled.args[1] if len(scaled.args) == 2 and isinstance(scaled.args[1], (int, float)) else 0
            divided = scaled.target is aten.div.Tensor and math.isclose(by, math.sqrt(2), rel_tol=1e-5)
            if divided or (scaled.target is aten.mul.Tensor and math.isclose(by, math.sqrt(0.5), rel_tol=1e-5)):
                return aten.gelu.default, (x,)
    return None


def _factors(node: Node) -> Iterator[Any]:
    """What is multiplied, products of products included."""
    for arg in node.args:
        if isinstance(arg, Node) and arg.target is aten.mul.Tensor and _inner(arg):
            yield from _factors(arg)
        else:
            yield arg


def _layer_norm(module: GraphModule, node: Node) -> Made:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), with its factors and offsets where they follow."""
    beta: Node | None = None
    for scaled, offset in _operands(node, aten.add.Tensor):
        for normed, factor in _operands(scaled, aten.mul.Tensor):
            if _attribute(offset) and _attribute(factor) and _inner(scaled) and _inner(normed):
                beta = offset
                found = _normalized(normed)
                if found is not None:
                    x, dims, epsilon = found
                    shape = list(x.meta["val"].shape[dims[0] :])
                    same = all(list(v.meta["val"].shape) == shape for v in (factor, beta))
                    return (aten.layer_norm.default, (x, shape, factor, beta, epsilon)) if same else None
    return None


def _normalized(node: object) -> tuple[Node, list[int], float] | None:
    if not (isinstance(node, Node) and node.target is aten.div.Tensor):
        return None
    centred, root = node.args
    if not (_is(centred, aten.sub.Tensor) and _is(root, aten.sqrt.default) and _inner(root)):
        return None
    x, mean = centred.args  # type: ignore[union-attr]
    shifted = root.args[0]  # type: ignore[union-attr]
    if not (_is(mean, aten.mean.dim) and mean.args[0] is x and _is(shifted, aten.add.Tensor) and _inner(shifted)):
        return None
    variance, epsilon = shifted.args
    if not (_is(variance, aten.mean.dim) and _inner(variance) and isinstance(epsilon, (int, float))):
        return None
    square = variance.args[0]
    squared = (_is(square, aten.pow.Tensor_Scalar) and square.args[0] is centred and square.args[1] == 2) or (
        _is(square, aten.mul.Tensor) and square.args[0] is centred and square.args[1] is centred)  # fmt: skip
    inside = {square, node}
    if not squared or not _inner(square) or not _inner(mean) or any(user not in inside for user in centred.users):  # type: ignore[union-attr]
        return None
    rank = len(x.meta["val"].shape)
    dims = sorted(d % rank for d in mean.args[1])
    if dims != list(range(dims[0], rank)) or mean.args[1:] != variance.args[1:]:
        return None
    return x, dims, float(epsilon)


def _bias(module: GraphModule, node: Node) -> Made:
    for product, offset in _operands(node, aten.add.Tensor):
        if not (
            _is(product, aten.linear.default) and len(product.args) == 2 and _inner(product) and _attribute(offset)
        ):
            continue
        if tuple(offset.meta["val"].shape) == tuple(product.meta["val"].shape[-1:]):
            return aten.linear.default, (*product.args, offset)
    return None


def _operands(node: object, target: Any) -> Iterator[tuple[Any, Any]]:
    """Both orders of the operands of a sum or product."""
    if isinstance(node, Node) and node.target is target and len(node.args) == 2 and not node.kwargs:
        yield node.args[0], node.args[1]
        yield node.args[1], node.args[0]


def _is(node: object, target: Any) -> bool:
    return isinstance(node, Node) and node.target is target


def _same(a: object, b: object) -> bool:
    """Whether both give the same value; exporters write a DequantizeLinear for each reader."""
    if a is b:
        return True
    return isinstance(a, Node) and isinstance(b, Node) and a.target is b.target is DEQUANTIZE and a.args == b.args


def _inner(node: object) -> bool:
    """Whether a single node reads it."""
    return isinstance(node, Node) and len(node.users) == 1


def _attribute(node: object) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"
