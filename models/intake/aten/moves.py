"""Operators that hand elements on as they are: what they do to a value, quantized or not."""

from __future__ import annotations

import math
import operator
from itertools import accumulate

from torch.fx import Node

from agent.arithmetic import QUANTIZED, container_range
from models.intake.aten.layouts import Value
from models.intake.aten.operators import (
    IDENTITIES,
    PADS,
    PERMUTES,
    RESHAPES,
    SPLITS,
    argument,
    aten,
    dims_of,
    shape_of,
    shapes_of,
)
from models.intake.aten.walk import Walk, moves


@moves(IDENTITIES)
def _identity(walk: Walk, node: Node, v: Value) -> Value:
    return v


@moves(RESHAPES)
def _reshape(walk: Walk, node: Node, v: Value) -> Value:
    return walk.layouts.reshape(v, shape_of(node), walk.name(node))


@moves(PERMUTES)
def _permute(walk: Walk, node: Node, v: Value) -> Value:
    return walk.layouts.permute(v, dims_of(node, len(v.axes)))


@moves([aten.slice.Tensor])
def _slice(walk: Walk, node: Node, v: Value) -> Value:
    axis = argument(node, 1, "dim", 0) % len(v.axes)
    begin, step = argument(node, 2, "start") or 0, argument(node, 4, "step", 1)
    extent = v.shape[axis]
    begin = min(max(begin + extent if begin < 0 else begin, 0), extent)
    return walk.layouts.narrow(v, axis, begin, shape_of(node)[axis], walk.name(node), step)


@moves([aten.narrow.default])
def _narrow(walk: Walk, node: Node, v: Value) -> Value:
    axis, begin, count = node.args[1:4]
    axis %= len(v.axes)
    return walk.layouts.narrow(v, axis, begin % v.shape[axis], count, walk.name(node))


@moves([aten.select.int])
def _select(walk: Walk, node: Node, v: Value) -> Value:
    axis, index = node.args[1:3]
    axis %= len(v.axes)
    one = walk.layouts.narrow(v, axis, index % v.shape[axis], 1, walk.name(node))
    return walk.layouts.reshape(one, shape_of(node), f"{walk.name(node)}.reshaped")


@moves(SPLITS)
def _split(walk: Walk, node: Node, v: Value) -> Value:
    """``node`` takes an output of a split."""
    assert node.target is operator.getitem
    split, index = node.args
    unbind = split.target is aten.unbind.int
    axis = argument(split, 1 if unbind else 2, "dim", 0) % len(v.axes)
    extents = [1 if unbind else shape[axis] for shape in shapes_of(split)]
    begin = [0, *accumulate(extents)][index % len(extents)]
    part = walk.layouts.narrow(v, axis, begin, extents[index], walk.name(node))
    return walk.layouts.reshape(part, shape_of(node), f"{walk.name(node)}.reshaped")


@moves([aten.expand.default, aten.expand_as.default])
def _expand(walk: Walk, node: Node, v: Value) -> Value:
    return walk.layouts.expand(v, shape_of(node), walk.name(node))


@moves([aten.repeat.default])
def _repeat(walk: Walk, node: Node, v: Value) -> Value:
    """Each axis as [repeats, extent], of which the first is expanded."""
    repeats = node.args[1]
    shape = (1,) * (len(repeats) - len(v.axes)) + v.shape
    name = walk.name(node)
    apart = walk.layouts.reshape(v, [d for n in shape for d in (1, n)], f"{name}.apart")
    wide = walk.layouts.expand(apart, [d for r, n in zip(repeats, shape, strict=True) for d in (r, n)], f"{name}.wide")
    return walk.layouts.reshape(wide, shape_of(node), name)


@moves([aten.flip.default])
def _flip(walk: Walk, node: Node, v: Value) -> Value:
    rank = len(v.axes)
    flipped = {d % rank for d in node.args[1]}
    begin = [v.shape[a] - 1 if a in flipped else 0 for a in range(rank)]
    step = [-1 if a in flipped else 1 for a in range(rank)]
    return walk.layouts.slice(v, begin, step, v.shape, walk.name(node))


@moves([aten.roll.default])
def _roll(walk: Walk, node: Node, v: Value) -> Value:
    """The last elements of each axis, then the first."""
    shifts, dims = (
        list(w) if isinstance(w, (list, tuple)) else [w] for w in (node.args[1], argument(node, 2, "dims", []))
    )
    name, shape = walk.name(node), v.shape
    if not dims:
        v, dims = walk.layouts.reshape(v, (math.prod(shape),), f"{name}.flat"), [0]
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % len(v.axes)
        extent = v.shape[axis]
        begin = -shift % extent
        if begin == 0:
            continue
        parts = [walk.layouts.narrow(v, axis, begin, extent - begin, f"{name}.last"),
                 walk.layouts.narrow(v, axis, 0, begin, f"{name}.first")]  # fmt: skip
        y = walk.b.like(v.tensor, name, v.tensor.shape)
        walk.layouts.concat(parts, y, v.axes.index(axis))
        v = Value(y, v.axes, v.factor)
    return walk.layouts.reshape(v, shape, name)


@moves([aten.pixel_shuffle.default, aten.pixel_unshuffle.default])
def _pixel_shuffle(walk: Walk, node: Node, v: Value) -> Value:
    r = node.args[1]
    *lead, c, h, w = v.shape
    k, name = len(lead), walk.name(node)
    if node.target is aten.pixel_shuffle.default:
        apart, dims = (*lead, c // (r * r), r, r, h, w), (*range(k), k, k + 3, k + 1, k + 4, k + 2)
    else:
        apart, dims = (*lead, c, h // r, r, w // r, r), (*range(k), k, k + 2, k + 4, k + 1, k + 3)
    moved = walk.layouts.permute(walk.layouts.reshape(v, apart, f"{name}.apart"), dims)
    return walk.layouts.reshape(moved, shape_of(node), name)


@moves([aten.channel_shuffle.default])
def _channel_shuffle(walk: Walk, node: Node, v: Value) -> Value:
    groups = node.args[1]
    n, c, *rest = v.shape
    name = walk.name(node)
    apart = walk.layouts.reshape(v, (n, groups, c // groups, *rest), f"{name}.apart")
    moved = walk.layouts.permute(apart, (0, 2, 1, *range(3, len(rest) + 3)))
    return walk.layouts.reshape(moved, v.shape, name)


@moves(PADS)
def _pad(walk: Walk, node: Node, v: Value) -> Value | None:
    """A constant frame, where the constant lies in the quantization's range; negative counts cut."""
    rank, counts, name = len(v.axes), list(node.args[1]), walk.name(node)
    mode = argument(node, 2, "mode", "constant") if node.target is aten.pad.default else "constant"
    value = argument(node, 3 if node.target is aten.pad.default else 2, "value", 0.0) or 0.0
    t = v.tensor
    if mode != "constant" or t.dtype not in QUANTIZED:
        return v if not any(counts) else None
    if not any(counts):
        return v
    q = round(value / v.factor / t.scale) + t.zero_point
    low, high = container_range(t)
    if not low <= q <= high:
        return None
    before, after = [0] * rank, [0] * rank
    for i in range(len(counts) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = counts[2 * i], counts[2 * i + 1]
    begin = [max(-n, 0) for n in before]
    left = [n - b - max(-a, 0) for n, b, a in zip(v.shape, begin, after, strict=True)]
    v = walk.layouts.slice(v, begin, [1] * rank, left, f"{name}.cut")
    before, after = ([max(n, 0) for n in side] for side in (before, after))
    return walk.layouts.pad(v, before, after, [0] * rank, q, name) if any((*before, *after)) else v
