"""Random models of the operators that move or pick elements, among them such whose input or output has a halo."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agent import graph as g
from agent.modelfile import Model
from tests.operators import RANGE, Sketch


def _shape(s: Sketch, least: int = 1) -> tuple[int, ...]:
    """Of rank 1 to 6; maps are the likeliest."""
    rank = 4 if s.chance() else s.int(least, 6)
    most = {1: 300, 2: 90, 3: 40, 4: 20, 5: 7, 6: 5}[rank]
    shape = [1 if s.chance(0.2) else s.int(1, most) for _ in range(rank)]
    if rank == 4:
        shape[0] = s.int(1, 2)
    return tuple(shape)


def _tensor(s: Sketch, shape: tuple[int, ...]) -> g.Tensor:
    return s.tensor(shape, str(s.rng.choice(["f32", "s32"])) if s.chance(0.3) else None)


def _around(s: Sketch, x: g.Tensor, y: g.Tensor) -> Model:
    """Where they are maps, padded convolutions may read x, which gives it a halo, and y, perhaps in y's stead."""
    outputs = [y]
    for t in (x, y):
        if len(t.shape) == 4 and t.dtype in RANGE and s.chance(0.4):
            padding = (s.int(0, 2), s.int(0, 2), s.int(0, 2), s.int(0, 2))
            kernel = tuple(max(1, min(3, t.shape[1 + i] + padding[i] + padding[2 + i])) for i in range(2))
            outputs.append(s.conv(t, s.int(1, 20), kernel, (1, 1), padding))
    return s.model([x], outputs[1:] if len(outputs) > 1 and s.chance() else outputs)


def transpose(s: Sketch) -> Model:
    x = _tensor(s, _shape(s))
    axes = tuple(int(a) for a in s.rng.permutation(len(x.shape)))
    if s.chance(0.2):
        axes = tuple(range(len(x.shape)))
    y = s.tensor([x.shape[a] for a in axes], like=x)
    s.nodes.append(g.Transpose("move", x.name, y.name, axes))
    return _around(s, x, y)


def slice(s: Sketch) -> Model:
    x = _tensor(s, _shape(s))
    begin, step, shape = [], [], []
    for extent in x.shape:
        kind = s.int(0, 3)
        first, last = (0, extent - 1) if kind == 0 else sorted((s.int(0, extent - 1), s.int(0, extent - 1)))
        stride = s.int(1, 3) if kind == 3 else 1
        count = (last - first) // stride + 1
        if kind == 2:
            first, stride = first + (count - 1) * stride, -stride
        begin.append(first)
        step.append(stride)
        shape.append(count)
    y = s.tensor(shape, like=x)
    s.nodes.append(g.Slice("move", x.name, y.name, tuple(begin), tuple(step)))
    return _around(s, x, y)


def expand(s: Sketch) -> Model:
    shape = _shape(s)
    x = _tensor(s, tuple(1 if s.chance(0.4) else n for n in shape))
    y = s.tensor(shape if s.chance(0.9) else x.shape, like=x)
    s.nodes.append(g.Expand("move", x.name, y.name))
    return _around(s, x, y)


def pad(s: Sketch) -> Model:
    x = s.tensor(_shape(s))
    counts = [tuple(s.int(0, 3) if s.chance(0.4) else 0 for _ in x.shape) for _ in range(3)]
    if s.chance(0.6) and len(x.shape) > 1:
        counts[2] = (*(0 for _ in x.shape[:-1]), 0)
    before, after, interior = counts
    y = s.tensor([b + n + (n - 1) * i + a for n, b, a, i in zip(x.shape, *counts, strict=True)], like=x)
    low, high = RANGE[x.dtype]
    value = x.zero_point if s.chance() else s.int(low, high)
    s.nodes.append(g.Pad("move", x.name, y.name, before, after, interior, value))
    return _around(s, x, y)


def _blends(s: Sketch, extent: int, count: int, nearest: bool) -> np.ndarray:
    """As half-pixel centers make them, or any at all."""
    if s.chance():
        at = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)
        low = np.floor(at).astype(np.int32)
        table = np.stack([low, np.minimum(low + 1, extent - 1), np.rint((at - low) * 2048).astype(np.int32)], 1)
    else:
        ends = s.rng.integers(0, extent, (count, 2))
        table = np.concatenate([ends, s.rng.choice([0, 1, 2047, 2048, s.int(0, 2048)], (count, 1))], 1)
    if nearest:
        table[:, 2] = 0
    return table.astype(np.int32)


def resize2d(s: Sketch) -> Model:
    n, h, w, c = s.int(1, 2), s.int(1, 12), s.int(1, 12), s.int(1, 40)
    x = s.tensor((n, h, w, c))
    y = s.tensor((n, s.int(1, 24), s.int(1, 24), c), like=x)
    nearest = s.chance(0.25)
    rows, columns = (_blends(s, a, b, nearest) for a, b in zip(x.shape[1:3], y.shape[1:3], strict=True))
    s.nodes.append(g.Resize2d("move", x.name, y.name, s.constant(rows), s.constant(columns)))
    return _around(s, x, y)


def argmax(s: Sketch) -> Model:
    x = s.tensor(_shape(s))
    y = s.tensor(x.shape[:-1] or (1,), "s32")
    s.nodes.append(g.ArgMax("move", x.name, y.name))
    return _around(s, x, y)


def constant(s: Sketch) -> Model:
    """Joined with an input, by a sum and by a convolution of its own: a map that is read late, with a halo."""
    shape = (1, s.int(1, 12), s.int(1, 12), s.int(1, 40))
    x, fixed = s.tensor(shape), s.tensor(shape)
    low, high = RANGE[fixed.dtype]
    value = s.rng.integers(low, high + 1, shape).astype(np.uint8 if fixed.dtype == "u8" else np.int8)
    s.nodes.append(g.Constant("fixed", fixed.name, s.constant(value)))
    word = _tensor(s, _shape(s))
    info = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}[word.dtype]
    s.nodes.append(g.Constant("word", word.name, s.constant(s.rng.integers(-100, 100, word.shape).astype(info))))
    trunk = x
    for _ in range(s.int(0, 3)):
        trunk = s.conv(trunk, shape[3], (3, 3), (1, 1), (1, 1, 1, 1))
    outputs = [s.add(trunk, fixed), word]
    if s.chance():
        outputs.append(s.conv(fixed, s.int(1, 20), (3, 3), (1, 1), (1, 1, 1, 1)))
    if s.chance():
        outputs.append(fixed)
    return s.model([x], outputs)


def attention(s: Sketch) -> Model:
    """What a transformer does between its products: heads apart, one of three picked, turned, heads together."""
    rows, heads, d = s.int(1, 50), s.int(1, 6), s.int(1, 40)
    x = s.tensor((1, rows, 3 * heads * d))

    def step(t: g.Tensor, make: Callable[[str], type], shape: tuple[int, ...], *rest: tuple[int, ...]) -> g.Tensor:
        y = s.tensor(shape, like=t)
        s.nodes.append(make(f"n{len(s.nodes)}", t.name, y.name, *rest))
        return y

    apart = step(x, g.Reshape, (1, rows, 3, heads, d))
    first = step(apart, g.Transpose, (3, 1, heads, rows, d), (2, 0, 3, 1, 4))
    outputs = []
    for i in range(3):
        one = step(first, g.Slice, (1, 1, heads, rows, d), (i, 0, 0, 0, 0), (1, 1, 1, 1, 1))
        flat = step(one, g.Reshape, (heads, rows, d))
        turned = step(flat, g.Transpose, (heads, d, rows), (0, 2, 1)) if s.chance() else flat
        back = step(turned, g.Transpose, (turned.shape[1], heads, turned.shape[2]), (1, 0, 2))
        outputs.append(step(back, g.Reshape, (1, turned.shape[1], heads * turned.shape[2])))
    joined = s.tensor((3, *outputs[0].shape[1:])) if len({t.shape for t in outputs}) == 1 else None
    if joined:
        s.nodes.append(g.Concat("joined", tuple(t.name for t in outputs), joined.name, 0))
        outputs.append(joined)
    return s.model([x], outputs)


MOVES: dict[str, Callable[[Sketch], Model]] = {
    f.__name__: f for f in (transpose, slice, expand, pad, resize2d, argmax, constant, attention)
}
