"""Pools, means and resizing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from agent import graph as g
from agent.arithmetic import container_range
from agent.errors import ModelError
from models.intake.builder import resize_table
from models.intake.tflite.importer import NONE, Import, same_padding
from models.intake.tflite.reader import LIMITS, Operator

_EXTENT = 1 << 16  # of a resized axis
_MOST_HALVES = 2048  # elements of a window up to which 128 * 2**-20 is less than 1 / (2 * n)


def _map(im: Import, op: Operator) -> tuple[g.Tensor, g.Tensor]:
    x, y = im.quantized(im.at(op, 0)), im.output(op)
    if len(x.shape) != 4 or len(y.shape) != 4:
        raise ModelError(f"it takes {list(x.shape)} and gives {list(y.shape)}, where [n, h, w, c] is needed")
    return x, y


def _window(x: g.Tensor, op: Operator) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Kernel, stride and padding."""
    kind = "Pool2DOptions"
    kernel = (op.option(kind, "FilterHeight"), op.option(kind, "FilterWidth"))
    stride = (op.option(kind, "StrideH"), op.option(kind, "StrideW"))
    if not all(0 < v <= LIMITS.window for v in (*kernel, *stride)):
        raise ModelError(f"its window {kernel} and stride {stride} must lie in 1..{LIMITS.window}")
    same = op.option(kind, "Padding") == 0
    return kernel, stride, same_padding(x.shape[1:3], kernel, stride, (1, 1)) if same else (0, 0, 0, 0)


def average_pool(im: Import, op: Operator) -> None:
    """The mean of the containers that lie inside the map; its halves go away from zero."""
    x, y = _map(im, op)
    kernel, stride, padding = _window(x, op)
    lo, hi = im.clamp(y, op.option("Pool2DOptions", "FusedActivationFunction"))
    same = (x.dtype, x.scale, x.zero_point) == (y.dtype, y.scale, y.zero_point)
    halves = math.prod(kernel) % 2 == 0 or any(padding)
    if not same or not halves or math.prod(kernel) > _MOST_HALVES:
        im.b.add(g.AvgPool2d(y.name, x.name, y.name, kernel, stride, lo, hi, padding, count_include_pad=False))
        return
    # AvgPool2d takes a half to the even neighbour. LiteRT takes it away from the container 0: so do we, where the
    # container is the value, and a mean is a millionth more than it is, less than what lies between it and a half.
    plain = im.b.tensor(f"{y.name}/containers", x.shape, x.dtype, 1.0, 0)
    pooled = im.b.tensor(f"{y.name}/mean", y.shape, y.dtype, 1.0 - 2.0**-20, 0)
    im.reinterpret(x, plain)
    im.b.add(
        g.AvgPool2d(pooled.name, plain.name, pooled.name, kernel, stride, lo, hi, padding, count_include_pad=False)
    )
    im.reinterpret(pooled, y)


def max_pool(im: Import, op: Operator) -> None:
    """The maximum of a window."""
    x, y = _map(im, op)
    kernel, stride, padding = _window(x, op)
    clamp = im.clamp(y, op.option("Pool2DOptions", "FusedActivationFunction"))
    im.settle(y, x, lambda z: im.b.add(g.MaxPool2d(z.name, x.name, z.name, kernel, stride, padding)), *clamp)


def mean(im: Import, op: Operator) -> None:
    """The mean over any axes: they become the rows and columns of a map, what lies after them its channels."""
    x, y = im.quantized(im.at(op, 0)), im.output(op)
    rank = len(x.shape)
    axes = im.integers(op, 1)
    if not all(-rank <= a < rank for a in axes):
        raise ModelError(f"its axes are {axes}, of {rank}")
    reduced = sorted({a % rank for a in axes} - {a for a, extent in enumerate(x.shape) if extent == 1})
    if math.prod(y.shape) * math.prod(x.shape[a] for a in reduced) != math.prod(x.shape):
        raise ModelError(f"it can't make {list(y.shape)} of {list(x.shape)}")
    if not reduced:
        x = im.reshape(x, y.shape, f"{y.name}/rank")
        im.b.requantize(x, y)
        return
    first, last = reduced[0], reduced[-1]
    kept = [a for a in range(rank) if a not in reduced and x.shape[a] > 1]
    if any(first < a < last for a in kept):  # others lie between them: they go to the end
        order = [*(a for a in range(rank) if a not in reduced), *reduced]
        x = im.transpose(x, order, f"{y.name}/transposed")
        first, last = rank - len(reduced), rank - 1
    outer, inner = math.prod(x.shape[:first]), math.prod(x.shape[last + 1 :])
    extents = [d for d in x.shape[first : last + 1] if d > 1]
    window = (extents[0], math.prod(extents[1:]))
    if max(window) > LIMITS.window:
        raise ModelError(f"its mean is over {window} elements; at most {LIMITS.window} an axis are taken")
    maps = im.reshape(x, (outer, *window, inner), f"{y.name}/map")
    pooled = y if y.shape == (outer, 1, 1, inner) else im.temporary(y, f"{y.name}/pooled", (outer, 1, 1, inner))
    im.b.add(g.AvgPool2d(pooled.name, maps.name, pooled.name, window, (1, 1), *container_range(y)))
    if pooled is not y:
        im.b.add(g.Reshape(y.name, pooled.name, y.name))


# Resizing


def _resize(im: Import, op: Operator, kind: str, positions: Callable[[int, int, bool, bool], np.ndarray],
            nearest: bool) -> None:  # fmt: skip
    x, y = _map(im, op)
    aligned, centred = op.option(kind, "AlignCorners"), op.option(kind, "HalfPixelCenters")
    if aligned and centred:
        raise ModelError("it has both aligned corners and half-pixel centres, which contradict each other")
    if max(y.shape[1:3]) > _EXTENT:
        raise ModelError(f"it gives {list(y.shape)}; at most {_EXTENT} rows and columns are taken")
    tables = [
        resize_table(positions(x.shape[a], y.shape[a], aligned, centred), x.shape[a], nearest=nearest) for a in (1, 2)
    ]
    im.settle(y, x, lambda z: im.b.resize2d(x, z, *tables), *im.clamp(y, NONE))


def _scale(n: int, out: int, aligned: bool) -> np.float32:
    return np.float32(n - 1) / np.float32(out - 1) if aligned and out > 1 else np.float32(n) / np.float32(out)


def _bilinear(n: int, out: int, aligned: bool, centred: bool) -> np.ndarray:
    at = np.arange(out, dtype=np.float64)
    return (at + 0.5) * _scale(n, out, aligned) - 0.5 if centred else at * _scale(n, out, aligned)


def _nearest(n: int, out: int, aligned: bool, centred: bool) -> np.ndarray:
    """In fp32, as LiteRT computes it: a product next to a whole number falls to the same side."""
    at = (np.arange(out, dtype=np.float32) + np.float32(0.5 if centred else 0)) * _scale(n, out, aligned)
    return np.floor(at + np.float32(0.5)) if aligned else np.floor(at)


def resize_bilinear(im: Import, op: Operator) -> None:
    """Interpolation between four neighbours."""
    _resize(im, op, "ResizeBilinearOptions", _bilinear, nearest=False)


def resize_nearest(im: Import, op: Operator) -> None:
    """The nearest neighbour."""
    _resize(im, op, "ResizeNearestNeighborOptions", _nearest, nearest=True)
