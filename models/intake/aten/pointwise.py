"""Sums, products, tables of unary functions, and concatenation: whatever layout their operands agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from agent import graph as g
from models.intake.aten.layouts import Value
from models.intake.aten.operators import CONCATS, POINTWISE, PRODUCTS, SUMS, argument, aten, functional, shape_of
from models.intake.aten.walk import Walk, Want, handles


def one_leaf(walk: Walk, node: Node) -> tuple[Node, Value] | None:
    """The one quantized value that an expression of pointwise operators depends on, beside numbers; None: not so."""
    leaf: tuple[Node, Value] | None = None
    seen, left = {node}, [node]
    while left:
        for arg in left.pop().all_input_nodes:
            if arg in seen or _number(walk, arg) is not None:
                continue
            seen.add(arg)
            value = walk.source(arg)
            if value is None and arg.target in POINTWISE and shape_of(arg) == shape_of(node):
                left.append(arg)
            elif value is None or value.shape != shape_of(node) or (leaf and leaf[1] != value):
                return None
            elif leaf is None:
                leaf = (arg, value)
    return leaf


def _number(walk: Walk, node: object) -> torch.Tensor | None:
    """A constant of one element, in double."""
    real = walk.real(node) if isinstance(node, Node) and node.op in ("get_attr", "call_function") else None
    return torch.from_numpy(np.asarray(real, np.float64).reshape(())) if real is not None and real.size == 1 else None


def table(walk: Walk, node: Node, want: Want) -> Value | None:
    """A function of one quantized value, computed in double for each of its 256 containers."""
    found = one_leaf(walk, node)
    if found is None:
        return None
    _, x = found

    def evaluate(values: np.ndarray) -> np.ndarray:
        known: dict[Node, Any] = {}

        def value(arg: Any) -> Any:
            if not isinstance(arg, Node):
                return arg
            number = _number(walk, arg)
            if number is not None:
                return number
            return known[arg] if arg in known else torch.from_numpy(values)

        for n in _expression(walk, node):
            target = functional(n.target)
            args = [value(a) for a in n.args]
            if n.target is aten.prelu.default:
                args[1] = args[1].reshape(1)
            known[n] = target(*args, **{k: value(a) for k, a in n.kwargs.items()})
        return known[node].numpy()  # type: ignore[no-any-return]

    y = walk.output(want, x.axes)
    single = len(_expression(walk, node)) == 1
    name = functional(node.target)._schema.name.removeprefix("aten::") if single else "expression"
    walk.b.lut(x.tensor, y, evaluate, name, want.lo, want.hi)
    return Value(y, x.axes)


def _expression(walk: Walk, node: Node) -> list[Node]:
    """The float nodes between the leaf and ``node``, in order."""
    inside, left = {node}, [node]
    while left:
        for arg in left.pop().all_input_nodes:
            if arg not in inside and walk.source(arg) is None and _number(walk, arg) is None:
                inside.add(arg)
                left.append(arg)
    return [n for n in walk.module.graph.nodes if n in inside]


def _agree(walk: Walk, want: Want, values: Sequence[Value]) -> list[Value]:
    """The values with as many axes as the result, in one order: that of the first that changes and is as large."""
    rank = len(want.shape)
    same = [v for v in values if v.shape == want.shape]
    leading = next((v for v in same if not walk.layouts.is_constant(v)), same[0] if same else values[0])
    axes = leading.axes if len(leading.axes) == rank else tuple(range(rank))
    reshaped = [walk.layouts.reshape(v, (1,) * (rank - len(v.axes)) + v.shape, f"{want.name}.operand") for v in values]
    return [walk.layouts.arrange(v, axes) for v in reshaped]


@handles(SUMS)
def _add(walk: Walk, node: Node, want: Want) -> Value | None:
    """Broadcast operands are expanded. A common factor of the operands is the sum's, too."""
    a, b = walk.scaled(node.args[0]), walk.scaled(node.args[1])
    if a is None or b is None or argument(node, 2, "alpha", 1) != 1:
        return None
    name = functional(node.target)._schema.name
    if name == "aten::rsub":
        a, b = b, a
    if a.factor != b.factor:
        a, b = _one_factor(walk, a, b)
    factor = a.factor
    a, b = (walk.layouts.expand(v, want.shape, f"{want.name}.operand") for v in _agree(walk, want, (a, b)))
    y = walk.output(replace(want, times=factor), a.axes)
    walk.b.add(g.Add(y.name, (a.tensor.name, b.tensor.name), y.name, want.lo, want.hi, name != "aten::add"))
    return Value(y, a.axes, factor)


def _one_factor(walk: Walk, a: Value, b: Value) -> tuple[Value, Value]:
    """A constant can be had in units of the other operand's factor; else neither keeps one."""
    for v, other in ((a, b), (b, a)):
        if walk.layouts.is_constant(v) and v.factor == 1:
            scaled = walk.layouts.scaled_constant(v, 1 / other.factor)
            pair = replace(scaled, factor=other.factor)
            return (pair, other) if v is a else (other, pair)
    return walk.plain(a), walk.plain(b)


@handles(PRODUCTS)
def _mul(walk: Walk, node: Node, want: Want) -> Value | None:
    """Of operands of one shape; or [n, h, w, c] and a gate [n, 1, 1, c]; others are expanded."""
    a, b = walk.source(node.args[0]), walk.source(node.args[1])
    if a is None or b is None:
        return None
    a, b = _agree(walk, want, (a, b) if a.shape == want.shape else (b, a))
    a = walk.layouts.expand(a, want.shape, f"{want.name}.operand")
    n, *_, c = a.tensor.shape
    if not (len(a.axes) == 4 and b.tensor.shape == (n, 1, 1, c)):
        b = walk.layouts.expand(b, want.shape, f"{want.name}.operand")
    y = walk.output(want, a.axes)
    walk.b.add(g.Mul(y.name, (a.tensor.name, b.tensor.name), y.name, want.lo, want.hi))
    return Value(y, a.axes)


@handles(CONCATS)
def _concat(walk: Walk, node: Node, want: Want) -> Value | None:
    values = [walk.source(arg) for arg in node.args[0]]
    if any(v is None for v in values) or not want.full:
        return None
    parts = [v for v in values if v is not None]
    axis = argument(node, 1, "dim", 0) % len(want.shape)
    if node.target is aten.stack.default:
        shape = (*want.shape[:axis], 1, *want.shape[axis + 1 :])
        parts = [walk.layouts.reshape(v, shape, f"{want.name}.part") for v in parts]
    leading = next((v for v in parts if not walk.layouts.is_constant(v)), parts[0])
    parts = [walk.layouts.arrange(v, leading.axes) for v in parts]
    y = walk.output(want, leading.axes)
    walk.layouts.concat(parts, y, leading.axes.index(axis))
    return Value(y, leading.axes)
