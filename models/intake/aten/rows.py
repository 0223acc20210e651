"""What works along one axis: softmax, norms, the largest element."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from agent import graph as g
from models.intake.aten.layouts import Value, identity
from models.intake.aten.operators import SOFTMAX, argument, aten
from models.intake.aten.products import last
from models.intake.aten.walk import Walk, Want, handles


@handles(SOFTMAX)
def _softmax(walk: Walk, node: Node, want: Want) -> Value | None:
    x = softmax_input(walk, node)
    if x is None or not want.full:
        return None
    y = walk.output(want, x.axes)
    walk.b.softmax(x.tensor, y, x.factor)
    return Value(y, x.axes)


def softmax_input(walk: Walk, node: Node) -> Value | None:
    """The quantized input of a softmax, with the axis that sums to 1 as the graph's last."""
    x = walk.scaled(node.args[0])
    if x is None or not x.axes or argument(node, 2, "dtype") not in (None, False):
        return None
    return last(walk, x, node.args[1] % len(x.axes))


@handles([aten.layer_norm.default])
def _layer_norm(walk: Walk, node: Node, want: Want) -> Value | None:
    x = walk.source(node.args[0])
    if x is None:
        return None
    normalized = tuple(node.args[1])
    count, rank = len(normalized), len(x.axes)
    gamma, beta = (_affine(walk, node, i, n, normalized) for i, n in ((2, "weight"), (3, "bias")))
    if gamma is None or beta is None:
        return None
    epsilon = argument(node, 4, "eps", 1e-5)
    x = last(walk, x, rank - 1) if count == 1 else walk.layouts.arrange(x, identity(rank))
    shape = (*x.tensor.shape[: rank - count], math.prod(normalized))
    return _normalize(walk, want, x, shape, gamma.ravel(), beta.ravel(), epsilon)


@handles([aten.group_norm.default])
def _group_norm(walk: Walk, node: Node, want: Want) -> Value | None:
    """Of one group, or without gamma and beta: each row that is normalized then has the same ones."""
    x, groups = walk.source(node.args[0]), node.args[1]
    if x is None:
        return None
    n, c, *rest = x.shape
    gamma, beta = (_affine(walk, node, i, name, (c,)) for i, name in ((2, "weight"), (3, "bias")))
    if gamma is None or beta is None:
        return None
    epsilon = argument(node, 4, "eps", 1e-5)
    if groups == 1:  # whatever the layout, a row is a whole sample
        x = walk.layouts.arrange(x, (0, *(a for a in x.axes if a)))
        channel = x.axes.index(1)
        along = [-1 if i == channel else 1 for i in range(1, len(x.axes))]
        gamma, beta = (np.broadcast_to(w.reshape(along), x.tensor.shape[1:]).ravel() for w in (gamma, beta))
        return _normalize(walk, want, x, (n, math.prod(x.tensor.shape[1:])), gamma, beta, epsilon)
    if (gamma != 1).any() or beta.any():
        return None
    x = walk.layouts.arrange(x, identity(len(x.axes)))
    size = c // groups * math.prod(rest)
    return _normalize(walk, want, x, (n * groups, size), np.ones(size), np.zeros(size), epsilon)


def _affine(walk: Walk, node: Node, position: int, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    given = argument(node, position, name)
    if given is None:
        return np.full(shape, 1.0 if name == "weight" else 0.0)
    return walk.real(given)


def _normalize(
    walk: Walk, want: Want, x: Value, shape: tuple[int, ...], gamma: np.ndarray, beta: np.ndarray, epsilon: float
) -> Value:
    """x's rows, as the graph's ``shape`` has them."""
    source = walk.layouts.as_graph(x, shape)
    flat = shape != x.tensor.shape
    y = walk.b.tensor(f"{want.name}.rows" if flat else want.name, shape, want.dtype, want.scale, want.zero_point)
    names = [walk.b.constant(f"{want.name}.{n}", w.astype(np.float32)) for n, w in (("gamma", gamma), ("beta", beta))]
    walk.b.add(g.LayerNorm(y.name, source.name, y.name, *names, epsilon, want.lo, want.hi))
    t = walk.layouts.as_graph(Value(y, identity(len(shape))), x.tensor.shape, want.name) if flat else y
    return Value(t, x.axes)


def argmax(walk: Walk, node: Node, name: str) -> Value | None:
    """The index along one axis of a quantized value, s32."""
    x = walk.source(node.args[0])
    dim = argument(node, 1, "dim")
    if x is None or not x.axes or (dim is None and len(x.axes) != 1):
        return None
    axis = (dim or 0) % len(x.axes)
    x = last(walk, x, axis)
    kept = [a for a in x.axes[:-1]]
    keeps = argument(node, 2, "keepdim", False)
    y = walk.b.tensor(f"{name}.index" if keeps else name, [x.shape[a] for a in kept] or [1], "s32")
    walk.b.add(g.ArgMax(y.name, x.tensor.name, y.name))
    if keeps:
        shape = [1 if a == axis else n for a, n in enumerate(x.shape)]
        found = Value(y, tuple(sorted(kept).index(a) for a in kept))
        return walk.layouts.reshape(found, shape, name)
    return Value(y, tuple(sorted(kept).index(a) for a in kept))
