"""Convolutions, linear layers and matrix products, which end in a requantization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from agent import graph as g
from models.intake.aten.layouts import Value, identity
from models.intake.aten.operators import CONVOLUTIONS, LINEAR, MATMULS, TRANSPOSED, argument
from models.intake.aten.walk import Walk, Want, handles
from models.intake.aten.weights import Weight, bias_and_multiplier


def pair(value: Any) -> tuple[int, int]:
    """(y, x) of an argument that may be one number; a list of one is that of a map of height 1, as ``wide`` has it."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


@handles(CONVOLUTIONS)
def _conv2d(walk: Walk, node: Node, want: Want) -> Value | None:
    x, weight = walk.source(node.args[0]), walk.weight(node.args[1])
    if x is None or weight is None or len(x.axes) != weight.q.ndim:
        return None
    flat = weight.q.ndim == 3
    weight = weight.unsqueeze(2) if flat else weight

    def spatial(position: int, name: str, neutral: int) -> tuple[int, int]:
        given = argument(node, position, name, neutral)
        along = list(given) if isinstance(given, (list, tuple)) else [given]
        return (neutral, along[0]) if flat else pair(along)

    stride, dilation = spatial(3, "stride", 1), spatial(5, "dilation", 1)
    padding = argument(node, 4, "padding", 0)
    kernel = weight.q.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        pads = (0, 0, 0, 0) if padding == "valid" else spatial(4, "padding", 0) * 2
    groups = argument(node, 6, "groups", 1)
    return _convolution(walk, node, want, x, weight, (stride, pads, dilation, groups))


@handles(TRANSPOSED)
def _conv_transpose2d(walk: Walk, node: Node, want: Want) -> Value | None:
    """A convolution of stride 1 over the map with zeros between its pixels."""
    x, weight = walk.source(node.args[0]), walk.weight(node.args[1])
    if x is None or weight is None or len(x.axes) != 4:
        return None
    defaults = (("stride", 1), ("padding", 0), ("output_padding", 0))
    stride, padding, extra = (pair(argument(node, i, *d)) for i, d in enumerate(defaults, 3))
    groups, dilation = argument(node, 6, "groups", 1), pair(argument(node, 7, "dilation", 1))
    ic, oc = weight.q.shape[0], weight.q.shape[1] * groups
    kernel = weight.q.shape[2:]
    q = weight.q.reshape(groups, ic // groups, oc // groups, *kernel).transpose(0, 2, 1, 3, 4)
    q = q.reshape(oc, ic // groups, *kernel)[:, :, ::-1, ::-1]
    if weight.axis not in (None, 1):
        return None
    scale = np.tile(weight.scale, groups) if weight.axis == 1 else weight.scale
    turned = Weight(q, scale, None if weight.axis is None else 0, weight.zero_point)
    before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    after = [b + e for b, e in zip(before, extra, strict=True)]
    if min(*before, *after) < 0:
        return None
    if stride != (1, 1):
        between = [0, 0, *(s - 1 for s in stride)]
        x = walk.layouts.pad(walk.nhwc(x), [0] * 4, [0] * 4, between, x.tensor.zero_point, f"{want.name}.spread")
    return _convolution(walk, node, want, x, turned, ((1, 1), (*before, *after), dilation, groups))


def _convolution(
    walk: Walk, node: Node, want: Want, x: Value, weight: Weight, window: tuple[Any, Any, Any, int]
) -> Value | None:
    stride, padding, dilation, groups = window
    common = _weighted(walk, node, want, x, weight.permute((0, 2, 3, 1)))
    if common is None:
        return None
    source = walk.nhwc(x).tensor
    y, result = walk.map_output(want)
    walk.b.add(g.Conv2d(y.name, source.name, y.name, **common, stride=stride, padding=padding, dilation=dilation,
                        groups=groups))  # fmt: skip
    return result()


@handles(LINEAR)
def _linear(walk: Walk, node: Node, want: Want) -> Value | None:
    return linear(walk, node, want, walk.source(node.args[0]), walk.weight(node.args[1]))


def linear(walk: Walk, node: Node, want: Want, x: Value | None, weight: Weight | None) -> Value | None:
    """weight: [n, k]."""
    if x is None or weight is None or weight.q.ndim != 2:
        return None
    common = _weighted(walk, node, want, x, weight)
    if common is None:
        return None
    x = last(walk, x, len(x.axes) - 1)
    y = walk.output(want, x.axes)
    walk.b.add(g.Linear(y.name, x.tensor.name, y.name, **common))
    return Value(y, x.axes)


def last(walk: Walk, v: Value, axis: int) -> Value:
    """The value with this axis as the graph's last."""
    if v.axes[-1] == axis:
        return v
    return walk.layouts.arrange(v, (*(a for a in v.axes if a != axis), axis))


def _weighted(walk: Walk, node: Node, want: Want, x: Value, weight: Weight) -> dict[str, Any] | None:
    """The constants and the clamp of a node with weights; weight: by output channel first."""
    weight = weight.contained()
    scales = weight.channels()
    bias_node = argument(node, 2, "bias") if node.target not in MATMULS else None
    bias = None if bias_node is None else walk.real(bias_node)
    if scales is None or (bias_node is not None and bias is None):
        return None
    sy = float(np.float32(want.scale / want.times))
    q, integers, multiplier = bias_and_multiplier(bias, weight.q, x.tensor.scale, scales, sy, weight.zero_point)
    names = {"weight": q, "bias": integers, "multiplier": multiplier}
    made = {key: walk.b.constant(f"{want.name}.{key}", array) for key, array in names.items()}
    return made | {"lo": want.lo, "hi": want.hi, "weight_zero_point": weight.zero_point}


@handles(MATMULS)
def _matmul(walk: Walk, node: Node, want: Want) -> Value | None:
    weight = walk.weight(node.args[1])
    x = walk.source(node.args[0])
    if weight is not None and weight.q.ndim == 2 and x is not None and len(x.axes) > 1:
        made = linear(walk, node, want, x, weight.permute((1, 0)))
        if made is not None:
            return made
    b = walk.source(node.args[1])
    rank = len(want.shape)
    if x is None or b is None or min(len(x.axes), len(b.axes)) < 2:
        return None
    batch, name = want.shape[:-2], want.name
    x = walk.layouts.expand(x, (*batch, *x.shape[-2:]), f"{name}.first")
    b = walk.layouts.expand(b, (*batch, *b.shape[-2:]), f"{name}.second")
    transposed = b.axes[-1] == rank - 2
    x = walk.layouts.arrange(x, identity(rank))
    b = walk.layouts.arrange(b, (*range(rank - 2), rank - 1, rank - 2) if transposed else identity(rank))
    y = walk.output(want, identity(rank))
    walk.b.add(g.Matmul(y.name, (x.tensor.name, b.tensor.name), y.name, want.lo, want.hi, transposed))
    return replace(Value(y, identity(rank)), factor=want.times)
