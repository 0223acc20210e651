"""Pools, means and interpolation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from agent import graph as g
from models.intake.aten.layouts import NHWC, Value, axes_of
from models.intake.aten.operators import MAX_POOLS, MEANS, RESIZES, argument, aten
from models.intake.aten.products import pair
from models.intake.aten.walk import Walk, Want, handles
from models.intake.builder import resize_table

LARGEST_WINDOW = 4096


def _spatial(node: Node, position: int, name: str, neutral: int, default: Any = None) -> tuple[int, int]:
    """An argument (y, x); of an operator over [n, c, l], that of a map of height 1."""
    given = argument(node, position, name) or (neutral if default is None else default)
    if "1d" not in str(node.target):
        return pair(given)
    return (neutral, given[0] if isinstance(given, (list, tuple)) else given)


@handles(MAX_POOLS)
def _max_pool2d(walk: Walk, node: Node, want: Want) -> Value | None:
    x = walk.source(node.args[0])
    if x is None or len(x.axes) != (3 if "1d" in str(node.target) else 4):
        return None
    kernel = _spatial(node, 1, "kernel_size", 1)
    stride = _spatial(node, 2, "stride", 1, node.args[1])
    padding, dilation = _spatial(node, 3, "padding", 0), _spatial(node, 4, "dilation", 1)
    x = walk.nhwc(x)
    like = replace(want, dtype=x.tensor.dtype, scale=x.tensor.scale, zero_point=x.tensor.zero_point)
    y, result = walk.map_output(like)
    pad = _ceil_padding(x.tensor, y, kernel, stride, padding, dilation)
    walk.b.add(g.MaxPool2d(y.name, x.tensor.name, y.name, kernel, stride, pad, dilation))
    return walk.finish(result(), want)


def _ceil_padding(
    x: g.Tensor, y: g.Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """ceil_mode is padding at the end, exactly as much as the last window needs."""
    ends = []
    for axis in range(2):
        needed = (y.shape[1 + axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        ends.append(max(padding[axis], needed - x.shape[1 + axis] - padding[axis]))
    return (*padding, *ends)


@handles([aten.avg_pool2d.default, aten.avg_pool1d.default])
def _avg_pool2d(walk: Walk, node: Node, want: Want) -> Value | None:
    x = walk.source(node.args[0])
    if x is None or len(x.axes) != (3 if "1d" in str(node.target) else 4):
        return None
    kernel = _spatial(node, 1, "kernel_size", 1)
    stride, padding = _spatial(node, 2, "stride", 1, node.args[1]), _spatial(node, 3, "padding", 0)
    if argument(node, 4, "ceil_mode", False) or argument(node, 6, "divisor_override") is not None:
        return None
    return _average(walk, want, walk.nhwc(x), kernel, stride, padding * 2, argument(node, 5, "count_include_pad", True))


@handles([aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default])
def _adaptive_avg_pool2d(walk: Walk, node: Node, want: Want) -> Value | None:
    """Where the output divides the map; else windows differ in size."""
    x = walk.source(node.args[0])
    if x is None or len(x.axes) != (3 if "1d" in str(node.target) else 4):
        return None
    x = walk.nhwc(x)
    size = x.tensor.shape[1:3]
    out = (size[0], want.shape[-1]) if len(want.shape) == 3 else want.shape[2:]
    if any(n % o for n, o in zip(size, out, strict=True)):
        return None
    kernel = (size[0] // out[0], size[1] // out[1])
    return _average(walk, want, x, kernel, kernel)


def _average(
    walk: Walk, want: Want, x: Value, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int, int, int] = (0, 0, 0, 0), count_include_pad: bool = True,
) -> Value:  # fmt: skip
    y, result = walk.map_output(want)
    walk.b.add(g.AvgPool2d(y.name, x.tensor.name, y.name, kernel, stride, want.lo, want.hi, padding, count_include_pad))
    return result()


@handles(MEANS)
def _mean(walk: Walk, node: Node, want: Want) -> Value | None:
    """An average over one window, with the reduced axes as the map and the kept ones around it."""
    x = walk.source(node.args[0])
    if x is None or argument(node, 3, "dtype") is not None:
        return None
    rank = len(x.axes)
    dims = argument(node, 1, "dim") if node.target is aten.mean.dim else None
    reduced = set(axes_of(rank, dims or range(rank)))
    first = min(x.axes.index(a) for a in reduced)
    before = [a for a in x.axes[:first]]
    after = [a for a in x.axes[first:] if a not in reduced]
    middle = [a for a in x.axes if a in reduced]
    x = walk.layouts.arrange(x, (*before, *middle, *after))
    extents = [x.shape[a] for a in middle]
    window = _window(extents)
    if window is None:
        return None
    outer, inner = (math.prod(x.shape[a] for a in side) for side in (before, after))
    source = walk.layouts.as_graph(x, (outer, *window, inner))
    kept = (*before, *after)
    y = walk.b.tensor(f"{want.name}.map", (outer, 1, 1, inner), want.dtype, want.scale, want.zero_point)
    walk.b.add(g.AvgPool2d(y.name, source.name, y.name, window, (1, 1), want.lo, want.hi))
    pooled = Value(y, tuple(range(4)))
    shape = [x.shape[a] for a in kept]
    t = walk.layouts.as_graph(pooled, shape or [1], want.name)
    ranks = sorted(kept)
    value = Value(t, tuple(ranks.index(a) for a in kept))
    return walk.layouts.reshape(value, want.shape, f"{want.name}.kept") if value.shape != want.shape else value


def _window(extents: list[int]) -> tuple[int, int] | None:
    """Two factors of the extents' product, each small enough for a window."""
    if len(extents) == 2 and max(extents) <= LARGEST_WINDOW:
        return (extents[0], extents[1])
    n = math.prod(extents)
    width = next((d for d in range(1, LARGEST_WINDOW + 1) if n % d == 0 and n // d <= LARGEST_WINDOW), None)
    return None if width is None or n >= 2**22 else (n // width, width)


@handles(RESIZES)
def _resize2d(walk: Walk, node: Node, want: Want) -> Value | None:
    x = walk.source(node.args[0])
    if x is None or len(x.axes) != 4:
        return None
    x = walk.nhwc(x)
    name = str(node.target)
    bilinear, vector = "bilinear" in name, name.endswith(".vec")
    align = bool(argument(node, 2, "align_corners")) if bilinear else False
    at = 3 if bilinear else 2
    scales = argument(node, at, "scale_factors") if vector else [argument(node, at + i, s) for i, s in
                                                                 enumerate(("scales_h", "scales_w"))]  # fmt: skip
    tables = []
    for axis in range(2):
        extent, out = x.tensor.shape[1 + axis], want.shape[2 + axis]
        factor = scales[axis] if scales else None
        ratio = 1 / factor if factor else extent / out
        i = np.arange(out, dtype=np.float64)
        if not bilinear:
            positions = np.floor((i + 0.5) * ratio if "exact" in name else i * ratio)
        elif align:
            positions = i * ((extent - 1) / (out - 1) if out > 1 else 0.0)
        else:
            positions = (i + 0.5) * ratio - 0.5
        tables.append(resize_table(positions, extent, not bilinear))
    y = walk.b.like(x.tensor, want.name, [want.shape[a] for a in NHWC])
    walk.b.resize2d(x.tensor, y, *tables)
    return walk.finish(Value(y, NHWC), want)
