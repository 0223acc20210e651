"""What moves elements and computes nothing: shapes, axes, slices, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED, container_range
from agent.errors import ModelError
from models.intake.tflite.importer import NONE, Import
from models.intake.tflite.reader import LIMITS, Operator

_CONCAT_RANK = 4


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ModelError(f"its axis is {axis}, of {rank}")
    return axis % rank


def _reshaped(im: Import, x: g.Tensor, y: g.Tensor) -> None:
    if math.prod(x.shape) != math.prod(y.shape):
        raise ModelError(f"it can't make {list(y.shape)} of {list(x.shape)}")
    im.moved(y, x, lambda x, y: im.b.add(g.Reshape(y.name, x.name, y.name)))


def reshape(im: Import, op: Operator) -> None:
    """To the output's shape, which the file states: RESHAPE, SQUEEZE, EXPAND_DIMS."""
    _reshaped(im, im.activation(im.at(op, 0)), im.output(op, quantized=False))


def shape(im: Import, op: Operator) -> None:
    """The input's shape, which never changes."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    value = np.array(im.described(op.inputs[0]).shape, np.int32)
    if y.dtype != "s32" or y.shape != value.shape:
        raise ModelError(f"it can't make {y.dtype} {list(y.shape)} of the shape {list(x.shape)}")
    im.b.add(g.Constant(y.name, y.name, im.b.constant(f"{y.name}.value", value)))


def transpose(im: Import, op: Operator) -> None:
    """Axes in another order."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    axes = [_axis(a, len(x.shape)) for a in im.integers(op, 1)]
    if sorted(axes) != list(range(len(x.shape))):
        raise ModelError(f"its axes are {axes}, of {len(x.shape)}")
    im.moved(y, x, lambda x, y: im.b.add(g.Transpose(y.name, x.name, y.name, tuple(axes))))


# Joining


def _join(im: Import, inputs: Sequence[g.Tensor], y: g.Tensor, axis: int, lo: int, hi: int) -> None:
    """inputs: y's shape but for the axis."""
    for x in inputs:
        if x.shape[:axis] + x.shape[axis + 1 :] != y.shape[:axis] + y.shape[axis + 1 :]:
            raise ModelError(f"'{x.name}' of shape {list(x.shape)} does not fit {list(y.shape)} along axis {axis}")
    whole = y
    if len(y.shape) > _CONCAT_RANK:
        outer, inner = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
        inputs = [im.reshape(x, (outer, x.shape[axis], inner), f"{y.name}/input{i}") for i, x in enumerate(inputs)]
        whole, axis = im.temporary(y, f"{y.name}/joined", (outer, y.shape[axis], inner)), 1
    clamped = y.dtype in QUANTIZED and (lo, hi) != container_range(y)
    if clamped and whole is y:
        whole = im.temporary(y, f"{y.name}/joined", y.shape)
    im.b.add(g.Concat(whole.name, tuple(x.name for x in inputs), whole.name, axis))
    if clamped:
        whole = im.reshape(whole, y.shape, f"{y.name}/whole")
        im.b.lut(whole, y, lambda v: v, "clamp", lo, hi)
    elif whole is not y:
        im.b.add(g.Reshape(y.name, whole.name, y.name))


def concatenation(im: Import, op: Operator) -> None:
    """Along an axis; inputs in other quantizations are requantized."""
    inputs = [im.activation(i) for i in op.inputs]
    y = im.output(op, quantized=False)
    rank = len(y.shape)
    if not inputs or any(len(x.shape) != rank for x in inputs):
        raise ModelError(f"its inputs need {rank} axes")
    activation = op.option("ConcatenationOptions", "FusedActivationFunction")
    clamp = im.clamp(y, activation) if y.dtype in QUANTIZED else (0, 0)
    if y.dtype not in QUANTIZED and activation != NONE:
        raise ModelError("a fused activation of floats has no form here")
    _join(im, inputs, y, _axis(op.option("ConcatenationOptions", "Axis"), rank), *clamp)


def pack(im: Import, op: Operator) -> None:
    """Inputs along a new axis."""
    inputs = [im.activation(i) for i in op.inputs]
    y = im.output(op, quantized=False)
    axis = _axis(op.option("PackOptions", "Axis"), len(y.shape))
    one = (*y.shape[:axis], 1, *y.shape[axis + 1 :])
    inputs = [im.reshape(x, one, f"{y.name}/input{i}") for i, x in enumerate(inputs)]
    _join(im, inputs, y, axis, *(container_range(y) if y.dtype in QUANTIZED else (0, 0)))


# Slices


def _cut(
    im: Import, x: g.Tensor, y: g.Tensor, begin: Sequence[int], step: Sequence[int], counts: Sequence[int]
) -> None:
    """y, of any shape, holds x's elements begin + i * step, ``counts`` of them an axis."""
    if math.prod(counts) != math.prod(y.shape):
        raise ModelError(f"it takes {list(counts)} elements, and gives {list(y.shape)}")

    def make(x: g.Tensor, y: g.Tensor) -> None:
        part = y if y.shape == tuple(counts) else im.temporary(y, f"{y.name}/slice", counts)
        im.b.add(g.Slice(part.name, x.name, part.name, tuple(begin), tuple(step)))
        if part is not y:
            im.b.add(g.Reshape(y.name, part.name, y.name))

    im.moved(y, x, make)


def _pieces(im: Import, op: Operator, x: g.Tensor, axis: int, sizes: Sequence[int]) -> None:
    """One output for each of the sizes along an axis."""
    if len(sizes) != len(op.outputs) or min(sizes) < 1 or sum(sizes) != x.shape[axis]:
        raise ModelError(f"it can't split {x.shape[axis]} elements into {len(op.outputs)} pieces of {list(sizes)[:16]}")
    begin, at = [0] * len(x.shape), 0
    for i, size in enumerate(sizes):
        begin[axis] = at
        _cut(im, x, im.output(op, i, quantized=False), begin, [1] * len(begin),
             [size if a == axis else n for a, n in enumerate(x.shape)])  # fmt: skip
        at += size


def unpack(im: Import, op: Operator) -> None:
    """An output for each element of an axis."""
    x = im.activation(im.at(op, 0))
    axis = _axis(op.option("UnpackOptions", "Axis"), len(x.shape))
    _pieces(im, op, x, axis, [1] * x.shape[axis])


def split(im: Import, op: Operator) -> None:
    """Equal pieces; the axis is the first input."""
    x, axes = im.activation(im.at(op, 1)), im.integers(op, 0, 1)
    axis = _axis(axes[0] if axes else 0, len(x.shape))
    count = len(op.outputs)
    _pieces(im, op, x, axis, [x.shape[axis] // count] * count)


def split_v(im: Import, op: Operator) -> None:
    """Pieces of given sizes, one of which may be -1: what is left."""
    x, sizes, axes = im.activation(im.at(op, 0)), im.integers(op, 1, 4096), im.integers(op, 2, 1)
    axis = _axis(axes[0] if axes else 0, len(x.shape))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = x.shape[axis] - sum(sizes) - 1
    _pieces(im, op, x, axis, sizes)


def slice_(im: Import, op: Operator) -> None:
    """size elements from begin, by axis; a size of -1 is what is left."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    begin, size = im.integers(op, 1), im.integers(op, 2)
    if len(begin) != len(x.shape) or len(size) != len(x.shape):
        raise ModelError(f"its begin {begin} and size {size} need {len(x.shape)} values")
    size = [n - b if s == -1 else s for n, b, s in zip(x.shape, begin, size, strict=True)]
    _cut(im, x, y, begin, [1] * len(begin), size)


def strided_slice(im: Import, op: Operator) -> None:
    """numpy's x[begin:end:stride, …], with TFLite's masks, a bit an entry: no begin, no end, ``...``, a new axis, and
    one element instead of a range, whose axis goes."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    begins, ends, strides = (im.integers(op, i) for i in (1, 2, 3))
    kind = "StridedSliceOptions"
    masks = {f: op.option(kind, f) for f in ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask")}
    if not len(begins) == len(ends) == len(strides):
        raise ModelError("its begin, end and strides differ in length")

    def marked(field: str, i: int) -> bool:
        return bool(masks[field] >> i & 1)

    entries = len(begins)
    taken = sum(not marked("NewAxisMask", i) and not marked("EllipsisMask", i) for i in range(entries))
    rest = len(x.shape) - taken
    if rest < 0 or sum(marked("EllipsisMask", i) for i in range(entries)) > 1:
        raise ModelError(f"it slices {taken} axes of {len(x.shape)}")
    begin, step, counts = [], [], []
    for i in range(entries):
        if marked("EllipsisMask", i):
            whole = x.shape[len(counts) : len(counts) + rest]
            begin, step, counts = [*begin, *[0] * rest], [*step, *[1] * rest], [*counts, *whole]
            rest = 0
        elif not marked("NewAxisMask", i):
            extent, stride = x.shape[len(counts)], strides[i]
            if stride == 0:
                raise ModelError("a stride of 0")
            first, end = begins[i], ends[i] + (begins[i] if op.option(kind, "Offset") else 0)
            if marked("ShrinkAxisMask", i):
                first, count, stride = _axis(first, extent), 1, 1
            else:
                span = range(extent)[slice(None if marked("BeginMask", i) else first,
                                           None if marked("EndMask", i) else end, stride)]  # fmt: skip
                first, count = span.start, len(span)
            begin.append(first)
            step.append(stride)
            counts.append(count)
    whole = x.shape[len(counts) :]
    counts += whole
    if min(counts, default=1) < 1:
        raise ModelError(f"it takes nothing: {counts} elements of {list(x.shape)}")
    # A step over a single element may lead anywhere; it is never made.
    step = [s if n > 1 else 1 for s, n in zip(step, counts, strict=False)]
    _cut(im, x, y, begin + [0] * len(whole), step + [1] * len(whole), counts)


# Filling and tiling


def pad(im: Import, op: Operator) -> None:
    """A frame of the zero point, or, with PADV2, of a constant. A frame of rows and columns of zeros that only
    convolutions without padding read becomes theirs."""
    x = im.quantized(im.at(op, 0))
    counts = np.array(im.integers(op, 1), np.int64).reshape(-1, 2)
    if len(counts) != len(x.shape) or counts.min(initial=0) < 0 or counts.max(initial=0) > LIMITS.elements:
        raise ModelError(f"its padding {counts.tolist()} does not fit {list(x.shape)}")
    value = x.zero_point
    if op.name == "PADV2":
        t = im.described(im.at(op, 2))
        if t.type != im.described(op.inputs[0]).type or t.array().size != 1:
            raise ModelError(f"its value '{t.name}' must be one constant of the input's type")
        value = int(im.array(op, 2).ravel()[0])
    before, after = (tuple(int(n) for n in side) for side in counts.T)
    t = im.source.tensors[op.outputs[0]]
    same = t.scales.tolist() == [x.scale] and t.zero_points.tolist() == [x.zero_point]
    spatial = len(counts) == 4 and not counts[[0, 3]].any() and counts.max() <= LIMITS.window
    if same and spatial and value == x.zero_point and _readers_take_it(im, op.outputs[0]):
        expected = tuple(int(n) for n in np.array(x.shape) + counts.sum(1))
        if t.shape != expected:
            raise ModelError(f"it can't make {list(t.shape)} of {list(x.shape)}")
        im.padded[op.outputs[0]] = x, (before[1], before[2], after[1], after[2])
        return
    y = im.output(op)
    none = (0,) * len(before)
    im.moved(y, x, lambda x, y: im.b.add(g.Pad(y.name, x.name, y.name, before, after, none, value)))


def _readers_take_it(im: Import, index: int) -> bool:
    """Whether all that read the tensor are convolutions with VALID padding."""
    takes = 0
    for op in im.source.operators:
        if index in op.inputs:
            kind = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}.get(op.name)
            if kind is None or op.inputs[0] != index or op.option(kind, "Padding") != 1:
                return False
            takes += 1
    return takes == im.reads[index] > 0


def broadcast_to(im: Import, op: Operator) -> None:
    """To the output's shape, by numpy's rule."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    if len(x.shape) > len(y.shape):
        raise ModelError(f"{list(x.shape)} can't be broadcast to {list(y.shape)}")
    x = im.reshape(x, [1] * (len(y.shape) - len(x.shape)) + list(x.shape), f"{y.name}/rank")
    im.moved(y, x, lambda x, y: im.b.add(g.Expand(y.name, x.name, y.name)))


def depth_to_space(im: Import, op: Operator) -> None:
    """Channels become blocks of pixels."""
    _blocks(im, op, op.option("DepthToSpaceOptions", "BlockSize"), to_space=True)


def space_to_depth(im: Import, op: Operator) -> None:
    """Blocks of pixels become channels."""
    _blocks(im, op, op.option("SpaceToDepthOptions", "BlockSize"), to_space=False)


def _blocks(im: Import, op: Operator, size: int, to_space: bool) -> None:
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    small, large = (x, y) if to_space else (y, x)
    n, h, w, c = (*small.shape, 0, 0, 0, 0)[:4]
    if size < 1 or len(small.shape) != 4 or c % (size * size) or large.shape != (n, h * size, w * size, c // size**2):
        raise ModelError(f"it can't make {list(y.shape)} of {list(x.shape)} in blocks of {size}")
    c //= size * size
    shape, axes = ((n, h, w, size, size, c), (0, 1, 3, 2, 4, 5)) if to_space else (
        (n, h, size, w, size, c), (0, 1, 3, 2, 4, 5))  # fmt: skip
    parted = im.reshape(x, shape, f"{y.name}/parts")
    _reshaped(im, im.transpose(parted, axes, f"{y.name}/blocks"), y)
