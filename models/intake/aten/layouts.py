"""Where a torch tensor's axes lie in the graph, and how a value gets into another layout.

A ``Value`` is a tensor of the graph and the torch axis that each of its axes is. So permuting is a matter of names; a
``Transpose`` comes to be only where an operator wants axes in an order that a value does not have, and once for all
that want it. Whatever moves elements only (reshape, slice, expand, pad) is here, too, in torch's terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent import graph as g
from models.intake.builder import GraphBuilder

NHWC = (0, 2, 3, 1)  # of torch's [n, c, h, w]


@dataclass(frozen=True)
class Value:
    """A torch tensor as the graph has it.

    axes: axis i of ``tensor`` is torch's axis ``axes[i]``; a torch scalar has none, and the tensor [1].
    factor: torch's value is the tensor's times this; only softmax and sums take another than 1.
    """

    tensor: g.Tensor
    axes: tuple[int, ...]
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in torch."""
        return tuple(self.tensor.shape[self.axes.index(a)] for a in range(len(self.axes)))


def identity(rank: int) -> tuple[int, ...]:
    """torch's own order."""
    return tuple(range(rank))


def axes_of(rank: int, dims: int | Sequence[int]) -> tuple[int, ...]:
    """Axes as torch's arguments name them, counted from the front."""
    return tuple(d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims))


class Layouts:
    """Adds the nodes that moves need, and remembers them."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.b = builder
        self._arranged: dict[tuple[str, tuple[int, ...]], g.Tensor] = {}
        self._constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: np.ndarray, dtype: g.Dtype, scale: float = 0.0, zero_point: int = 0) -> Value:
        """A value that never changes, of an array in torch's order."""
        shape = array.shape or (1,)
        t = self.b.tensor(name, shape, dtype, scale, zero_point)
        self.b.add(g.Constant(t.name, t.name, self.b.constant(f"{t.name}.value", array.reshape(shape))))
        self._constants[t.name] = array.reshape(shape)
        return Value(t, identity(array.ndim))

    def is_constant(self, v: Value) -> bool:
        """Whether the value never changes; its axes then cost nothing."""
        return v.tensor.name in self._constants

    def scaled_constant(self, v: Value, times: float) -> Value:
        """A constant whose every element is multiplied."""
        t = v.tensor
        array = self._constants[t.name]
        return replace(self.constant(t.name, array, t.dtype, t.scale * times, t.zero_point), axes=v.axes)

    def arrange(self, v: Value, axes: Sequence[int]) -> Value:
        """The value with its axes in this order."""
        axes = tuple(axes)
        if v.axes == axes:
            return v
        order = tuple(v.axes.index(a) for a in axes)
        shape = tuple(v.tensor.shape[i] for i in order)
        if shape == v.tensor.shape and _keeps_order(v.tensor.shape, order):
            return replace(v, axes=axes)
        key = (v.tensor.name, order)
        if key not in self._arranged:
            self._arranged[key] = self._transposed(v.tensor, order, shape)
        return replace(v, tensor=self._arranged[key], axes=axes)

    def _transposed(self, t: g.Tensor, order: tuple[int, ...], shape: tuple[int, ...]) -> g.Tensor:
        if t.name in self._constants:
            array = self._constants[t.name].transpose(order)
            return self.constant(t.name, array, t.dtype, t.scale, t.zero_point).tensor
        if _keeps_order(t.shape, order):
            return self._reshaped(t, shape, f"{t.name}.reshaped")
        y = self.b.like(t, f"{t.name}.transposed", shape)
        self.b.add(g.Transpose(y.name, t.name, y.name, order))
        return y

    def _reshaped(self, t: g.Tensor, shape: tuple[int, ...], name: str) -> g.Tensor:
        if t.name in self._constants:
            array = self._constants[t.name].reshape(shape)
            return self.constant(t.name, array, t.dtype, t.scale, t.zero_point).tensor
        y = self.b.like(t, name, shape)
        self.b.add(g.Reshape(y.name, t.name, y.name))
        return y

    def as_graph(self, v: Value, shape: Sequence[int], name: str = "") -> g.Tensor:
        """The value's elements, in the graph's order, under another shape."""
        shape = tuple(shape)
        return v.tensor if shape == v.tensor.shape else self._reshaped(v.tensor, shape, name or f"{v.tensor.name}.map")

    def permute(self, v: Value, dims: Sequence[int]) -> Value:
        """torch.permute: names only."""
        return replace(v, axes=tuple(list(dims).index(a) for a in v.axes))

    def reshape(self, v: Value, shape: Sequence[int], name: str) -> Value:
        """torch.reshape. Axes that the shape neither merges nor splits stay where they are."""
        shape = tuple(shape)
        if shape == v.shape:
            return v
        if not shape or not v.axes:
            t = self.as_graph(v, shape or (1,), name)
            return replace(v, tensor=t, axes=identity(len(shape)))
        groups = _groups(v.shape, shape)
        place = {a: i for i, a in enumerate(v.axes)}
        groups.sort(key=lambda group: min(place[a] for a in group[0]))
        wanted = [a for before, _ in groups for a in before]
        if wanted != [a for a in v.axes if a in set(wanted)]:
            v = self.arrange(v, _with_ones(wanted, v.shape))
        axes = _with_ones([a for _, after in groups for a in after], shape)
        t = self.as_graph(v, [shape[a] for a in axes], name)
        return replace(v, tensor=t, axes=tuple(axes))

    def slice(self, v: Value, begin: Sequence[int], step: Sequence[int], shape: Sequence[int], name: str) -> Value:
        """Element i of torch's axis a is element begin[a] + i * step[a]; shape: what is left."""
        if tuple(shape) == v.shape and all(s == 1 for s in step):
            return v
        y = self.b.like(v.tensor, name, [shape[a] for a in v.axes])
        self.b.add(g.Slice(y.name, v.tensor.name, y.name, *(tuple(w[a] for a in v.axes) for w in (begin, step))))
        return replace(v, tensor=y)

    def narrow(self, v: Value, axis: int, begin: int, count: int, name: str, step: int = 1) -> Value:
        """A slice along one axis."""
        rank = len(v.axes)
        shape = [count if a == axis else n for a, n in enumerate(v.shape)]
        begins, steps = ([w if a == axis else d for a in range(rank)] for w, d in ((begin, 0), (step, 1)))
        return self.slice(v, begins, steps, shape, name)

    def expand(self, v: Value, shape: Sequence[int], name: str) -> Value:
        """torch.expand, with new axes in front where the shape has more."""
        shape = tuple(shape)
        v = self.reshape(v, (1,) * (len(shape) - len(v.axes)) + v.shape, f"{name}.reshaped")
        if v.shape == shape:
            return v
        y = self.b.like(v.tensor, name, [shape[a] for a in v.axes])
        self.b.add(g.Expand(y.name, v.tensor.name, y.name))
        return replace(v, tensor=y)

    def pad(self, v: Value, before: Sequence[int], after: Sequence[int], interior: Sequence[int], value: int,
            name: str) -> Value:  # fmt: skip
        """A frame, and gaps, of a value in container units; counts by torch's axes."""
        counts = [before, after, interior]
        shape = [b + n + (n - 1) * i + e for n, b, e, i in zip(v.shape, *counts, strict=True)]
        y = self.b.like(v.tensor, name, [shape[a] for a in v.axes])
        self.b.add(g.Pad(y.name, v.tensor.name, y.name, *(tuple(c[a] for a in v.axes) for c in counts), value))
        return replace(v, tensor=y)

    def concat(self, values: Sequence[Value], y: g.Tensor, axis: int) -> None:
        """y = the values, which lie as y does, along axis ``axis`` of the graph; whatever the rank."""
        names = [v.tensor.name for v in values]
        if len(y.shape) <= 4:
            self.b.add(g.Concat(y.name, tuple(names), y.name, axis))
            return

        def flat(shape: Sequence[int]) -> tuple[int, ...]:
            return (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))

        parts = [self.as_graph(v, flat(v.tensor.shape)).name for v in values]
        joined = self.b.like(y, f"{y.name}.flat", flat(y.shape))
        self.b.add(g.Concat(joined.name, tuple(parts), joined.name, 1))
        self.b.add(g.Reshape(y.name, joined.name, y.name))


def _keeps_order(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Whether the permutation moves axes of one element only."""
    long = [i for i in order if shape[i] != 1]
    return long == sorted(long)


def _with_ones(axes: list[int], shape: Sequence[int]) -> list[int]:
    """The axes, and behind the axis before it each axis of one element."""
    axes = list(axes)
    for a, extent in enumerate(shape):
        if extent == 1:
            axes.insert(axes.index(a - 1) + 1 if a else 0, a)
    return axes


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes that hold the same elements; axes of one element are in none."""
    sources = [a for a, n in enumerate(before) if n != 1]
    targets = [a for a, n in enumerate(after) if n != 1]
    groups, i, j = [], 0, 0
    while i < len(sources):
        a, b = [sources[i]], [targets[j]]
        p, q, i, j = before[sources[i]], after[targets[j]], i + 1, j + 1
        while p != q:
            if p < q:
                a, p, i = [*a, sources[i]], p * before[sources[i]], i + 1
            else:
                b, q, j = [*b, targets[j]], q * after[targets[j]], j + 1
        groups.append((a, b))
    return groups
