"""Matrix products: MatMul and Gemm. A constant second factor is a linear layer's weight."""

from __future__ import annotations

import math
import re

from models.intake.onnx import shapes
from models.intake.onnx.proto import Operator
from models.intake.onnx.translate import Registry, Translator, Value, aten

registry = Registry()


def transposed(t: Translator, x: Value) -> Value:
    """The last two axes exchanged; a quantized constant keeps its integers."""
    return shapes.permute(t, x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


@registry.operator("MatMul")
def matmul(t: Translator, op: Operator, a: Value, b: Value) -> Value:
    if b.known and not a.known and b.rank == 2 and a.rank >= 2:
        return t.call(aten.linear.default, a, transposed(t, b), fold=False)
    return t.call(aten.matmul.default, a, b, fold=False)


@registry.operator("Gemm")
def gemm(t: Translator, op: Operator, a: Value, b: Value, c: Value | None = None) -> Value:
    alpha, beta = float(op.get("alpha", 1.0)), float(op.get("beta", 1.0))
    t.require(a.rank == 2 and b.rank == 2, "its factors must be matrices")
    a = transposed(t, a) if op.get("transA", 0) else a
    if c is not None and beta != 1.0:
        c = t.call(aten.mul.Tensor, c, beta)
    columns = b.shape[0 if op.get("transB", 0) else 1]
    if b.known and not a.known and alpha == 1.0 and (c is None or (c.known and c.shape == (columns,))):
        weight = b if op.get("transB", 0) else transposed(t, b)
        return t.call(aten.linear.default, a, weight, *([] if c is None else [c]), fold=False)
    b = transposed(t, b) if op.get("transB", 0) else b
    y = t.call(aten.matmul.default, a, b, fold=False)
    y = y if alpha == 1.0 else t.call(aten.mul.Tensor, y, alpha)
    return y if c is None else t.call(aten.add.Tensor, y, c)


@registry.operator("Einsum")
def einsum(t: Translator, op: Operator, a: Value, b: Value) -> Value:
    """Of two factors: axes moved so that it is one matrix product."""
    equation = op.get("equation", "").replace(" ", "")
    parts = re.fullmatch(r"([A-Za-z]*),([A-Za-z]*)->([A-Za-z]*)", equation)
    t.require(parts is not None, f"the equation '{equation}' is not one of two factors and a result")
    assert parts is not None
    left, right, out = parts.groups()
    t.require(all(len(set(w)) == len(w) for w in (left, right, out)), f"'{equation}' repeats an axis")
    t.require(
        (len(left), len(right)) == (a.rank, b.rank) and set(out) <= set(left + right), f"'{equation}' does not fit"
    )
    extent = dict(zip(left + right, a.shape + b.shape, strict=True))
    t.require(all(extent[c] == n for c, n in zip(left, a.shape, strict=True)), f"'{equation}': extents differ")
    t.require(set(left) ^ set(right) <= set(out), f"'{equation}' sums an axis of one factor")
    batch = [c for c in out if c in left and c in right]
    rows, columns = ([c for c in out if c in w and c not in batch] for w in (left, right))
    inner = [c for c in left if c not in out]

    def arranged(x: Value, letters: str, *groups: list[str]) -> Value:
        order = [letters.index(c) for c in [*batch, *groups[0], *groups[1]]]
        shape = [*(extent[c] for c in batch), *(math.prod(extent[c] for c in group) for group in groups)]
        return shapes.reshape(t, shapes.permute(t, x, order), shape)

    y = t.call(aten.matmul.default, arranged(a, left, rows, inner), arranged(b, right, inner, columns), fold=False)
    letters = [*batch, *rows, *columns]
    y = shapes.reshape(t, y, [extent[c] for c in letters])
    return shapes.permute(t, y, [letters.index(c) for c in out])
