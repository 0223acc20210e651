"""Two engines' values of one tensor, held beside each other over many inputs.

A *step* is the difference between neighbours of the model's quantization of the tensor. What the source has in float is
rounded to steps first, so that "equal" means: would be stored as the same integer; what lies beyond the integers' range
counts as its end, for a source may hold a value before the clamp that the model fused into its operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED, container_range
from agent.validate import operator_name

Array = np.ndarray


@dataclass(frozen=True)
class Value:
    """A tensor of a source, in the graph's layout. scale, zero_point: of integers; 0 where they mean themselves."""

    array: Array
    scale: float = 0.0
    zero_point: int = 0

    def real(self) -> Array:
        """f64."""
        x = self.array.astype(np.float64)
        return (x - self.zero_point) * self.scale if self.scale else x


class Agreement(msgspec.Struct, frozen=True):
    """How well one tensor agrees. Shares are 0..1.

    top1: of rows whose largest entry of the last axis is the same one; None where a row has one entry. equal, within:
    of elements that are the same, and that differ by a step at most; largest_steps: the greatest difference. The last
    two are None for a float tensor that has no steps. sqnr_db: the source's power over that of the difference; None
    where there is no difference.
    """

    tensor: str
    operator: str
    shape: tuple[int, ...]
    elements: int
    top1: float | None
    equal: float
    within: float | None
    largest_steps: int | None
    sqnr_db: float | None


class Tally:
    """Adds up the agreement of one tensor. step: for an f32 tensor, the step of the integers that it was made from."""

    def __init__(self, tensor: g.Tensor, maker: g.Node | None, step: float = 0.0) -> None:
        self.tensor, self._maker = tensor, maker
        self._step = tensor.scale if tensor.dtype in QUANTIZED else 1.0 if tensor.dtype == "s32" else step
        self.elements = self._rows = self._same_rows = self._equal = self._within = self._largest = 0
        self._signal = self._noise = 0.0

    def add(self, ours: Array, theirs: Value) -> None:
        """ours: as the engine gives it; theirs: of the same shape."""
        t = self.tensor
        quantized = t.dtype in QUANTIZED
        a, b = Value(ours, t.scale if quantized else 0.0, t.zero_point).real(), theirs.real()
        if quantized:
            low, high = (q - t.zero_point for q in container_range(t))
            b = np.clip(b, low * t.scale, high * t.scale)
        difference = a - b
        self._signal += float(np.square(b).sum())
        self._noise += float(np.square(difference).sum())
        self.elements += a.size
        if self._step:
            apart = np.rint(a / self._step) - np.rint(b / self._step) if quantized else difference / self._step
            steps = np.abs(np.rint(apart))
            self._equal += int((steps == 0).sum())
            self._within += int((steps <= 1).sum())
            self._largest = max(self._largest, int(steps.max()))
        else:
            self._equal += int((difference == 0).sum())
        if a.shape[-1] > 1 and t.dtype != "s32":
            same = a.argmax(-1) == b.argmax(-1)
            self._rows += same.size
            self._same_rows += int(same.sum())
        elif t.dtype == "s32":
            self._rows += a.size
            self._same_rows += int((difference == 0).sum())

    def agreement(self) -> Agreement:
        """Of all that was added."""
        n, stepped = self.elements, bool(self._step)
        return Agreement(
            tensor=self.tensor.name,
            operator=operator_name(self._maker) if self._maker else "input",
            shape=self.tensor.shape,
            elements=n,
            top1=self._same_rows / self._rows if self._rows else None,
            equal=self._equal / n,
            within=self._within / n if stepped else None,
            largest_steps=self._largest if stepped else None,
            sqnr_db=10 * math.log10(self._signal / self._noise) if self._noise and self._signal else None,
        )
