"""Operators that move, pick and repeat elements, or compute shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from models.intake.onnx.proto import Operator, dtype_of
from models.intake.onnx.translate import Quantization, Registry, Translator, Value, aten

registry = Registry()
_END = 1 << 62  # ONNX writes "up to the end" as the largest number


def axis_of(t: Translator, axis: int, rank: int) -> int:
    t.require(-rank <= axis < rank, f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def permute(t: Translator, x: Value, axes: Sequence[int]) -> Value:
    """Axis i of the result is axis axes[i] of x; a quantized constant keeps its integers and their scales."""
    if x.stored is not None:
        integers, q = x.stored
        axis = None if q.axis is None else list(axes).index(q.axis)
        return t.stored(integers.permute(*axes), Quantization(q.scale, q.zero_point, axis, q.dtype))
    return x if list(axes) == list(range(x.rank)) else t.call(aten.permute.default, x, list(axes))


def reshape(t: Translator, x: Value, shape: Sequence[int]) -> Value:
    t.require(math.prod(shape) == x.fake.numel(), f"{list(x.shape)} has no form {list(shape)}")
    if tuple(shape) == x.shape:
        return x
    if 1 < len(shape) < x.rank and tuple(shape[:-1]) == x.shape[: len(shape) - 1]:
        return t.call(aten.flatten.using_ints, x, len(shape) - 1)
    return t.call(aten.reshape.default, x, list(shape))


@registry.operator("Transpose", moves=True)
def transpose(t: Translator, op: Operator, x: Value) -> Value:
    axes = op.integers("perm") or tuple(reversed(range(x.rank)))
    t.require(sorted(axes) == list(range(x.rank)), f"{list(axes)} are no order of {x.rank} axes")
    return permute(t, x, axes)


@registry.operator("Reshape", moves=True)
def reshape_to(t: Translator, op: Operator, x: Value, shape: Value) -> Value:
    wanted = t.integers(shape, "shape")
    if not op.get("allowzero", 0):
        t.require(all(d != 0 or i < x.rank for i, d in enumerate(wanted)), f"bad shape {wanted}")
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    known = math.prod(d for d in wanted if d != -1)
    t.require(wanted.count(-1) <= 1 and all(d >= -1 for d in wanted), f"bad shape {wanted}")
    if -1 in wanted:
        t.require(known > 0 and x.fake.numel() % known == 0, f"{list(x.shape)} has no form {wanted}")
        wanted[wanted.index(-1)] = x.fake.numel() // known
    return reshape(t, x, wanted)


@registry.operator("Flatten", moves=True)
def flatten(t: Translator, op: Operator, x: Value) -> Value:
    axis = op.get("axis", 1)
    t.require(-x.rank <= axis <= x.rank, f"axis {axis} of a tensor of rank {x.rank}")
    axis += x.rank if axis < 0 else 0
    return reshape(t, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def _axes(t: Translator, op: Operator, axes: Value | None, rank: int) -> list[int] | None:
    given = t.integers(axes, "axes") if axes is not None else op.integers("axes")
    return None if given is None else sorted({axis_of(t, a, rank) for a in given})


@registry.operator("Squeeze", moves=True)
def squeeze(t: Translator, op: Operator, x: Value, axes: Value | None = None) -> Value:
    given = _axes(t, op, axes, x.rank)
    gone = [i for i, d in enumerate(x.shape) if d == 1] if given is None else given
    t.require(all(x.shape[i] == 1 for i in gone), f"axes {gone} of {list(x.shape)} are not all 1")
    for axis in reversed(gone):
        x = t.call(aten.squeeze.dim, x, axis)
    return x


@registry.operator("Unsqueeze", moves=True)
def unsqueeze(t: Translator, op: Operator, x: Value, axes: Value | None = None) -> Value:
    count = len(t.integers(axes, "axes")) if axes is not None else len(op.integers("axes") or ())
    t.require(x.rank + count <= t.limits.rank, "too many axes")
    for axis in _axes(t, op, axes, x.rank + count) or ():
        x = t.call(aten.unsqueeze.default, x, axis)
    return x


@registry.operator("Concat", moves=True)
def concat(t: Translator, op: Operator, *inputs: Value) -> Value:
    axis = axis_of(t, op.get("axis", 0), inputs[0].rank)
    kept = [x for x in inputs if x.shape[axis] > 0]
    return kept[0] if len(kept) == 1 else t.call(aten.cat.default, kept or list(inputs), axis)


@registry.operator("Split", moves=True)
def split(t: Translator, op: Operator, x: Value, sizes: Value | None = None) -> list[Value]:
    axis, count = axis_of(t, op.get("axis", 0), x.rank), len(op.outputs)
    extent = x.shape[axis]
    given = t.integers(sizes, "sizes") if sizes is not None else op.integers("split")
    if given is None:
        part = math.ceil(extent / count)
        given = [max(0, min(part, extent - i * part)) for i in range(count)]
    t.require(len(given) == count and sum(given) == extent and all(n > 0 for n in given), f"bad sizes {list(given)}")
    starts = np.cumsum([0, *given]).tolist()
    return [t.call(aten.slice.Tensor, x, axis, a, b) for a, b in itertools.pairwise(starts)]


@registry.operator("Slice", moves=True)
def slice_of(
    t: Translator, op: Operator, x: Value, starts: Value, ends: Value, axes: Value | None = None,
    steps: Value | None = None,
) -> Value:  # fmt: skip
    first, last = t.integers(starts, "starts"), t.integers(ends, "ends")
    where = t.integers(axes, "axes") if axes is not None else list(range(len(first)))
    every = t.integers(steps, "steps") if steps is not None else [1] * len(first)
    t.require(len(first) == len(last) == len(where) == len(every), "starts, ends, axes and steps differ in number")
    for begin, end, raw, step in zip(first, last, where, every, strict=True):
        axis = axis_of(t, raw, x.rank)
        t.require(step != 0, "a step is 0")
        picked = range(*slice(begin, None if step < 0 and end <= -_END else end, step).indices(x.shape[axis]))
        t.require(len(picked) > 0 or x.known, "it leaves nothing")
        if step > 0:
            if (picked.start, len(picked), step) != (0, x.shape[axis], 1):
                x = t.call(aten.slice.Tensor, x, axis, picked.start, picked.stop, *([step] if step > 1 else []))
            continue
        # From the last to the first: turned round, then from the first to the last.
        turned = [x.shape[axis] - 1 - i for i in (picked or range(0))]
        left = (turned[0], turned[-1] + 1) if turned else (0, 0)
        x = t.call(aten.slice.Tensor, t.call(aten.flip.default, x, [axis]), axis, *left, -step)
    return x


@registry.operator("Gather", moves=True)
def gather(t: Translator, op: Operator, x: Value, indices: Value) -> Value:
    axis = axis_of(t, op.get("axis", 0), x.rank)
    if not indices.known:
        t.require(x.known and axis == 0, "its indices depend on the model's input, and it reads no table of constants")
        return t.call(aten.embedding.default, x, indices, fold=False)
    index, extent = t.need(indices, "indices").to(torch.int64), x.shape[axis]
    t.require(bool(((index >= -extent) & (index < extent)).all()), f"an index is outside an axis of {extent}")
    index = torch.where(index < 0, index + extent, index)
    if index.ndim == 0:
        return t.call(aten.select.int, x, axis, int(index))
    flat = index.reshape(-1)
    first = int(flat[0]) if flat.numel() else 0
    if flat.numel() and bool((flat == torch.arange(first, first + flat.numel())).all()):
        y = t.call(aten.slice.Tensor, x, axis, first, first + flat.numel())
    else:
        y = t.call(aten.index_select.default, x, axis, t.constant(flat))
    return reshape(t, y, [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@registry.operator("Pad", moves=True)
def pad(
    t: Translator, op: Operator, x: Value, pads: Value, value: Value | None = None, axes: Value | None = None
) -> Value:  # fmt: skip
    counts, mode = t.integers(pads, "pads"), op.get("mode", "constant")
    given = t.integers(axes, "axes") if axes is not None else list(range(x.rank))
    where = [axis_of(t, a, x.rank) for a in given]
    t.require(len(counts) == 2 * len(where) and all(abs(c) <= 4096 for c in counts), f"bad pads {counts[:16]}")
    before, after = [0] * x.rank, [0] * x.rank
    for i, axis in enumerate(where):
        before[axis], after[axis] = counts[i], counts[len(where) + i]
    if mode == "constant":
        fill = 0.0 if value is None or not value.fake.numel() else float(t.need(value, "value"))
        flat = [c for pair in zip(reversed(before), reversed(after), strict=True) for c in pair]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return t.call(aten.constant_pad_nd.default, x, flat, fill) if any(flat) else x
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    t.require(mode in modes and min(counts) >= 0, f"the mode '{mode}' is unknown, or pads are negative")
    for axis in range(x.rank):
        if before[axis] or after[axis]:
            index = np.pad(np.arange(x.shape[axis]), (before[axis], after[axis]), modes[mode])  # type: ignore[call-overload]
            x = t.call(aten.index_select.default, x, axis, t.constant(torch.from_numpy(index)))
    return x


@registry.operator("Expand", moves=True)
def expand(t: Translator, op: Operator, x: Value, shape: Value) -> Value:
    wanted = t.integers(shape, "shape")
    t.require(all(d > 0 for d in wanted) and len(wanted) <= t.limits.rank, f"bad shape {wanted[:16]}")
    out = list(np.broadcast_shapes(x.shape, tuple(wanted)))
    t.require(math.prod(out) <= t.limits.elements, f"its result, of shape {out}, is too large")
    if tuple(out) == x.shape:
        return x
    return t.call(aten.expand.default, reshape(t, x, [1] * (len(out) - x.rank) + list(x.shape)), out)


@registry.operator("Tile", moves=True)
def tile(t: Translator, op: Operator, x: Value, repeats: Value) -> Value:
    counts = t.integers(repeats, "repeats")
    t.require(len(counts) == x.rank and all(c > 0 for c in counts), f"bad repeats {counts[:16]}")
    t.require(math.prod(counts) * x.fake.numel() <= t.limits.elements, "its result is too large")
    return t.call(aten.repeat.default, x, counts)


@registry.operator("DepthToSpace", moves=True)
def depth_to_space(t: Translator, op: Operator, x: Value) -> Value:
    block, mode = op.get("blocksize", 0), op.get("mode", "DCR")
    t.require(x.rank == 4 and 0 < block <= 4096 and x.shape[1] % block**2 == 0, "the block must divide the channels")
    if mode == "CRD":
        return t.call(aten.pixel_shuffle.default, x, block)
    n, c, h, w = x.shape
    c //= block**2
    y = permute(t, reshape(t, x, [n, block, block, c, h, w]), [0, 3, 4, 1, 5, 2])
    return reshape(t, y, [n, c, h * block, w * block])


@registry.operator("SpaceToDepth", moves=True)
def space_to_depth(t: Translator, op: Operator, x: Value) -> Value:
    block = op.get("blocksize", 0)
    t.require(x.rank == 4 and 0 < block <= 4096 and not x.shape[2] % block and not x.shape[3] % block,
              "the block must divide the map")  # fmt: skip
    n, c, h, w = x.shape
    h, w = h // block, w // block
    y = permute(t, reshape(t, x, [n, c, h, block, w, block]), [0, 3, 5, 1, 2, 4])
    return reshape(t, y, [n, c * block**2, h, w])


# Computed when imported


@registry.operator("Shape")
def shape_of(t: Translator, op: Operator, x: Value) -> Value:
    return t.constant(torch.tensor(x.shape[slice(op.get("start", 0), op.get("end", x.rank))], dtype=torch.int64))


@registry.operator("Size")
def size_of(t: Translator, op: Operator, x: Value) -> Value:
    return t.constant(torch.tensor(x.fake.numel()))


@registry.operator("Constant")
def constant(t: Translator, op: Operator) -> Value:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32), ("value_int", torch.int64),
                        ("value_ints", torch.int64)):  # fmt: skip
        if name in op.attributes:
            return t.constant(torch.tensor(op.attributes[name], dtype=dtype))
    value = op.attributes.get("value")
    t.require(isinstance(value, torch.Tensor), "it holds no numbers")
    return t.constant(value)


@registry.operator("ConstantOfShape")
def constant_of_shape(t: Translator, op: Operator, shape: Value) -> Value:
    wanted, value = t.integers(shape, "shape"), op.attributes.get("value")
    t.require(all(d >= 0 for d in wanted) and len(wanted) <= t.limits.rank, f"bad shape {wanted[:16]}")
    t.spend(math.prod(wanted))
    value = value if isinstance(value, torch.Tensor) else torch.zeros(1)
    t.require(value.numel() == 1, "its value is one number")
    return t.constant(torch.full(wanted, value.item(), dtype=value.dtype))


@registry.operator("Range")
def range_of(t: Translator, op: Operator, start: Value, limit: Value, step: Value) -> Value:
    first, last, by = (t.need(v, "limits").item() for v in (start, limit, step))
    t.require(by != 0 and all(math.isfinite(v) for v in (first, last, by)), "bad limits")
    t.spend(max(0, math.ceil((last - first) / by)))
    return t.constant(torch.arange(first, last, by, dtype=start.dtype)
                      if (last - first) / by > 0 else torch.empty(0, dtype=start.dtype))  # fmt: skip


@registry.operator("EyeLike")
def eye_like(t: Translator, op: Operator, x: Value) -> Value:
    t.require(x.rank == 2 and abs(op.get("k", 0)) <= 1 << 20, "it needs a matrix")
    t.spend(x.fake.numel())
    dtype = dtype_of(op.get("dtype", 1), op)
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]
    return t.constant((columns - rows == op.get("k", 0)).to(dtype))


@registry.operator("NonZero")
def nonzero(t: Translator, op: Operator, x: Value) -> Value:
    return t.constant(t.need(x, "input").nonzero().T)


@registry.operator("ScatterND")
def scatter_nd(t: Translator, op: Operator, x: Value, indices: Value, updates: Value) -> Value:
    t.require(op.get("reduction", "none") == "none", "a reduction is not taken")
    data, index, values = (t.need(v, "inputs").numpy() for v in (x, indices, updates))
    t.spend(data.size)
    made = data.copy()
    made[tuple(np.moveaxis(index, -1, 0))] = values
    return t.constant(torch.from_numpy(made))


@registry.operator("Trilu")
def trilu(t: Translator, op: Operator, x: Value, diagonal: Value | None = None) -> Value:
    k = 0 if diagonal is None else int(t.need(diagonal, "diagonal"))
    return t.call((aten.triu if op.get("upper", 1) else aten.tril).default, x, k)
