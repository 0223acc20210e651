"""Convolutions and pools, with ONNX's padding, and Resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from models.intake.onnx.proto import Operator
from models.intake.onnx.translate import DEQUANTIZE, Registry, Translator, Value, aten

registry = Registry()
_MOST = 4096  # of a kernel, stride, dilation or padding


class Window:
    """Kernel, stride, dilation, and padding before and after, by axis of the map."""

    def __init__(self, t: Translator, op: Operator, x: Value, kernel: Sequence[int]) -> None:
        axes = x.rank - 2
        ones = (1,) * axes
        self.kernel = tuple(kernel)
        self.stride = op.integers("strides") or ones
        self.dilation = op.integers("dilations") or ones
        pads = op.integers("pads") or (0,) * (2 * axes)
        t.require(1 <= axes <= 3, "maps of one to three axes are taken")
        sizes = (self.kernel, self.stride, self.dilation)
        t.require(all(len(v) == axes and all(0 < e <= _MOST for e in v) for v in sizes),
                  f"kernel, stride and dilation are {axes} numbers in 1..{_MOST}")  # fmt: skip
        t.require(len(pads) == 2 * axes and all(0 <= p <= _MOST for p in pads), f"pads lie in 0..{_MOST}")
        self.before, self.after = pads[:axes], pads[axes:]
        auto = op.get("auto_pad", "NOTSET")
        t.require(auto in ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), f"the padding '{auto}' is unknown")
        self.same = auto if auto.startswith("SAME") else ""
        if auto == "VALID":
            self.before = self.after = (0,) * axes
        elif self.same:
            needed = [max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n)
                      for n, k, s, d in zip(x.shape[2:], *sizes, strict=True)]  # fmt: skip
            small, large = tuple(n // 2 for n in needed), tuple(n - n // 2 for n in needed)
            self.before, self.after = (small, large) if self.same == "SAME_UPPER" else (large, small)

    @property
    def symmetric(self) -> bool:
        return self.before == self.after

    def pad(self, t: Translator, x: Value, value: float) -> Value:
        """x inside its padding, which is gone from the window."""
        pads = [p for pair in zip(reversed(self.before), reversed(self.after), strict=True) for p in pair]
        self.before = self.after = (0,) * len(self.before)
        return t.still_quantized(x, lambda v: t.call(aten.constant_pad_nd.default, v, pads, value))


@registry.operator("Conv")
def conv(t: Translator, op: Operator, x: Value, w: Value, b: Value | None = None) -> Value:
    window = Window(t, op, x, w.shape[2:])
    x = x if window.symmetric else window.pad(t, x, 0.0)
    target = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[x.rank - 3]
    groups = op.get("group", 1)
    t.require(0 < groups <= x.shape[1], "groups must divide the channels")
    arguments = [list(window.stride), list(window.before), list(window.dilation), groups]
    return t.call(target, x, w, b, *arguments, fold=False)


@registry.operator("ConvTranspose")
def conv_transpose(t: Translator, op: Operator, x: Value, w: Value, b: Value | None = None) -> Value:
    window = Window(t, op, x, w.shape[2:])
    axes = x.rank - 2
    extra = op.integers("output_padding") or (0,) * axes
    t.require(len(extra) == axes and all(0 <= e <= _MOST for e in extra), f"its output_padding lies in 0..{_MOST}")
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(
        x.shape[2:], window.stride, window.dilation, window.kernel, extra, strict=True)]  # fmt: skip
    shape = op.integers("output_shape")
    if shape or window.same:
        wanted = shape[-axes:] if shape else [n * s for n, s in zip(x.shape[2:], window.stride, strict=True)]
        cut = [max(0, f - n) for f, n in zip(full, wanted, strict=True)]
        small, large = tuple(c // 2 for c in cut), tuple(c - c // 2 for c in cut)
        upper = window.same != "SAME_LOWER"
        window.before, window.after = (small, large) if upper else (large, small)
    target: Any = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[axes - 1]
    groups = op.get("group", 1)
    t.require(0 < groups <= x.shape[1], "groups must divide the channels")
    symmetric = window.symmetric
    pads = list(window.before) if symmetric else [0] * axes
    y = t.call(target, x, w, b, list(window.stride), pads, list(extra), groups, list(window.dilation), fold=False)
    if not symmetric:
        for axis in range(axes):
            end = full[axis] - window.after[axis]
            y = t.call(aten.slice.Tensor, y, 2 + axis, window.before[axis], end)
    return y


@registry.operator("MaxPool", moves=True)
def max_pool(t: Translator, op: Operator, x: Value) -> Value:
    window = Window(t, op, x, op.integers("kernel_shape") or ())
    t.require(x.rank in (3, 4), "maps of one or two axes are taken")
    if not window.symmetric or any(2 * p > k for p, k in zip(window.before, window.kernel, strict=True)):
        node = x.node if x.node is not None and x.node.target is DEQUANTIZE else None
        least = float("-inf")
        if node is not None:  # the least value that the container holds
            _, scale, zero_point, low = node.args[:4]
            least = (low - zero_point) * scale
        x = window.pad(t, x, least)
    target = aten.max_pool1d.default if x.rank == 3 else aten.max_pool2d.default
    ceil = [True] if op.get("ceil_mode", 0) else []
    dilation = [list(window.dilation)] if ceil or any(d != 1 for d in window.dilation) else []
    return t.call(target, x, list(window.kernel), list(window.stride), list(window.before), *dilation, *ceil)


@registry.operator("AveragePool")
def average_pool(t: Translator, op: Operator, x: Value) -> Value:
    window = Window(t, op, x, op.integers("kernel_shape") or ())
    t.require(x.rank in (3, 4) and all(d == 1 for d in window.dilation), "maps of one or two axes, not dilated")
    target = aten.avg_pool1d.default if x.rank == 3 else aten.avg_pool2d.default
    include, ceil = bool(op.get("count_include_pad", 0)), bool(op.get("ceil_mode", 0))
    kernel, stride = list(window.kernel), list(window.stride)
    if window.symmetric and all(2 * p <= k for p, k in zip(window.before, kernel, strict=True)):
        pads = list(window.before)
        # Without padding both ways of counting are one; torch's default is the one that is written.
        counted = include or not any(pads)
        rest = [pads, ceil, counted] if ceil or not counted else [pads] if any(pads) else []
        return t.call(target, x, kernel, stride, *rest)
    t.require(not ceil, "ceil_mode beside padding on one side is not taken")
    ones = torch.ones(1, 1, *x.shape[2:])
    pads = [p for pair in zip(reversed(window.before), reversed(window.after), strict=True) for p in pair]
    y = t.call(target, window.pad(t, x, 0.0), kernel, stride)
    if include:
        return y
    share = target(torch.nn.functional.pad(ones, pads), kernel, stride)
    return t.call(aten.div.Tensor, y, t.constant(share))


@registry.operator("GlobalAveragePool")
def global_average_pool(t: Translator, op: Operator, x: Value) -> Value:
    if x.rank == 4:
        return t.call(aten.adaptive_avg_pool2d.default, x, [1, 1])
    return t.call(aten.mean.dim, x, list(range(2, x.rank)), True)


@registry.operator("GlobalMaxPool", moves=True)
def global_max_pool(t: Translator, op: Operator, x: Value) -> Value:
    return t.call(aten.amax.default, x, list(range(2, x.rank)), True)


@registry.operator("Resize")
def resize(
    t: Translator, op: Operator, x: Value, roi: Value | None = None, scales: Value | None = None,
    sizes: Value | None = None,
) -> Value:  # fmt: skip
    t.require(x.rank == 4, "maps of two axes are resized")
    t.require(not op.get("antialias", 0) and not op.integers("axes"), "antialias and axes are not taken")
    t.require(op.get("keep_aspect_ratio_policy", "stretch") == "stretch", "it has to stretch")
    if sizes is not None and sizes.fake.numel():
        out = t.integers(sizes, "sizes")
        t.require(len(out) == 4 and tuple(out[:2]) == x.shape[:2], "only rows and columns are resized")
        factors = [o / n for o, n in zip(out, x.shape, strict=True)]
    else:
        factors = [float(f) for f in t.need(scales, "scales").reshape(-1).tolist()]
        t.require(len(factors) == 4 and factors[:2] == [1, 1], "only rows and columns are resized")
        t.require(all(0 < f < 1 << 20 for f in factors), f"bad scales, {factors}")
        out = [math.floor(n * f) for n, f in zip(x.shape, factors, strict=True)]
    t.require(all(0 < o <= t.limits.elements for o in out), f"a bad size, {out}")
    t.require(math.prod(out) <= t.limits.elements, f"its result, of shape {out}, is too large")
    mode, nearest = op.get("mode", "nearest"), op.get("nearest_mode", "round_prefer_floor")
    where = op.get("coordinate_transformation_mode", "half_pixel")
    even = all(o == n * f for o, n, f in zip(out, x.shape, factors, strict=True))
    if mode == "linear" and even and where in ("half_pixel", "align_corners", "pytorch_half_pixel") and (
        where != "pytorch_half_pixel" or min(out[2:]) > 1
    ):  # fmt: skip
        return t.call(aten.upsample_bilinear2d.vec, x, out[2:], where == "align_corners", None)
    if mode == "nearest" and even and (where, nearest) == ("asymmetric", "floor"):
        return t.call(aten.upsample_nearest2d.vec, x, out[2:], None)
    if mode == "cubic" and even and where in ("half_pixel", "align_corners", "pytorch_half_pixel"):
        t.require(op.get("cubic_coeff_a", -0.75) == -0.75 and not op.get("exclude_outside", 0), "a cubic of its own")
        return t.call(aten.upsample_bicubic2d.vec, x, out[2:], where == "align_corners", None)
    t.require(mode in ("nearest", "linear"), f"the mode '{mode}' with '{where}' is not taken")
    for axis in (2, 3):
        at = _positions(t, where, out[axis], x.shape[axis], factors[axis])
        x = _sampled(t, x, axis, at, nearest if mode == "nearest" else "")
    return x


def _positions(t: Translator, where: str, out: int, extent: int, factor: float) -> torch.Tensor:
    """f64 [out]: where each output lies among the elements."""
    i = torch.arange(out, dtype=torch.float64)
    match where:
        case "half_pixel":
            return (i + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / factor - 0.5 if out > 1 else i
        case "asymmetric":
            return i / factor
        case "align_corners":
            return i * ((extent - 1) / (out - 1)) if out > 1 else i
        case "half_pixel_symmetric":
            return extent / 2 * (1 - out / (extent * factor)) + (i + 0.5) / factor - 0.5
    t.require(False, f"coordinates by '{where}' are not taken")
    return i


def _sampled(t: Translator, x: Value, axis: int, at: torch.Tensor, nearest: str) -> Value:
    last = x.shape[axis] - 1
    if not nearest:
        at = at.clamp(0, last)
        low = at.floor().to(torch.int64)
        weight = (at - low).float().reshape([-1, *[1] * (3 - axis)])
        a, b = (t.call(aten.index_select.default, x, axis, t.constant(i)) for i in (low, (low + 1).clamp(max=last)))
        return t.call(aten.add.Tensor, t.call(aten.mul.Tensor, a, t.constant(1 - weight)),
                      t.call(aten.mul.Tensor, b, t.constant(weight)))  # fmt: skip
    rounded = {
        "floor": torch.floor, "ceil": torch.ceil, "round_prefer_floor": lambda v: torch.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: torch.floor(v + 0.5),
    }.get(nearest)  # fmt: skip
    t.require(rounded is not None, f"rounding by '{nearest}' is unknown")
    assert rounded is not None
    index = rounded(at).clamp(0, last).to(torch.int64)
    return t.call(aten.index_select.default, x, axis, t.constant(index))
