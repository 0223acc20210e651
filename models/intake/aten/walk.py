"""What the handlers of operators share: the graph in the making, and what each node of the module has become.

A handler is ``handler(walk, node, want) -> Value | None``: it adds the int8 form of ``node``, whose result ``want``
describes, or returns None where there is none. Handlers are registered by the operators that they serve.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from agent import graph as g
from agent.arithmetic import container_range
from agent.errors import ModelError
from models.intake.aten.layouts import NHWC, Layouts, Value
from models.intake.aten.operators import DEQUANTIZE, DEQUANTIZE_CHANNEL, PERMUTES, QUANTIZE, dims_of, is_move
from models.intake.aten.weights import Weight
from models.intake.builder import GraphBuilder

DTYPES: dict[torch.dtype, g.Dtype] = {torch.uint8: "u8", torch.int8: "s8"}


@dataclass(frozen=True)
class Want:
    """The quantized result of a pattern.

    scale: fp32; lo, hi: the clamp in containers; times: a number that multiplies, and that the multiplier absorbs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: g.Dtype
    scale: float
    zero_point: int
    lo: int
    hi: int
    times: float = 1.0

    @property
    def full(self) -> bool:
        """Whether the clamp is the container's own range."""
        return (self.lo, self.hi) == container_range(g.Tensor("", (1,), self.dtype))


Handler = Callable[["Walk", Node, Want], Value | None]
Move = Callable[["Walk", Node, Value], Value | None]
HANDLERS: dict[Any, Handler] = {}
MOVERS: dict[Any, Move] = {}


def handles(operators: Iterable[Any]) -> Callable[[Handler], Handler]:
    """Registers a handler."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operators, handler))
        return handler

    return register


def moves(operators: Iterable[Any]) -> Callable[[Move], Move]:
    """Registers what an operator of ``operators.is_move`` does to a value, quantized or not."""

    def register(move: Move) -> Move:
        MOVERS.update(dict.fromkeys(operators, move))
        return move

    return register


class Walk:
    """The module, the graph, and the values that nodes have become."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.b = GraphBuilder()
        self.layouts = Layouts(self.b)
        self.quantized: dict[Node, Value] = {}  # by the node that gives integers
        self.sources: dict[Node, Value | None] = {}  # by any node whose value is known in integers
        self.names: dict[Node, str] = {}  # of tensors that must have this name: inputs and outputs

    # Names and tensors

    def name(self, node: Node) -> str:
        """The name of the tensor that a node gives."""
        return self.names.get(node) or str(node.meta.get("source_name") or node.name.removesuffix("_default"))

    def output(self, want: Want, axes: tuple[int, ...], name: str = "") -> g.Tensor:
        """A quantized tensor for a result whose axes lie so."""
        shape = [want.shape[a] for a in axes] or [1]
        return self.b.tensor(name or want.name, shape, want.dtype, want.scale / want.times, want.zero_point)

    # Constants of the module

    def constant(self, node: object) -> torch.Tensor | None:
        """What a node gives, where that never changes: an attribute, as it is or quantized."""
        if not isinstance(node, Node):
            return None
        if node.op == "get_attr":
            value: Any = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, torch.Tensor) else None
        if node.op == "call_function" and "quantize_per_" in str(node.target) and "dequantize" not in str(node.target):
            args = [self.constant(a) if isinstance(a, Node) else a for a in node.args]
            if all(a is not None for a in args):
                return node.target(*args)
        return None

    def weight(self, node: object) -> Weight | None:
        """A quantized constant, through permutations; None where it is none, or has a zero point by channel."""
        if not isinstance(node, Node):
            return None
        if node.target in PERMUTES:
            inner = self.weight(node.args[0])
            return None if inner is None else inner.permute(dims_of(node, inner.q.ndim))
        if node.target not in (DEQUANTIZE, DEQUANTIZE_CHANNEL):
            return None
        q = self.constant(node.args[0])
        if q is None or q.dtype not in DTYPES:
            return None
        if node.target is DEQUANTIZE:
            return Weight(q.numpy(), np.float32([node.args[1]]), None, int(node.args[2]))
        scales, zero_points = self.constant(node.args[1]), self.constant(node.args[2])
        assert scales is not None
        points = np.zeros(1) if zero_points is None else zero_points.numpy()
        if (points != points[0]).any():
            return None
        return Weight(q.numpy(), scales.numpy().astype(np.float32), int(node.args[3]), int(points[0]))

    def real(self, node: object) -> np.ndarray | None:
        """A constant in real values, quantized or not."""
        weight = self.weight(node)
        if weight is not None:
            return weight.real()
        value = self.constant(node)
        if value is not None:
            return value.numpy()
        if isinstance(node, Node) and node.target in (DEQUANTIZE, DEQUANTIZE_CHANNEL):
            # s32, a bias; or 8 bits with a zero point for each channel
            q = self.constant(node.args[0])
            by_channel = node.target is DEQUANTIZE_CHANNEL
            scale, zero_point = (self.constant(a) if by_channel else a for a in node.args[1:3])
            if q is not None and scale is not None:
                along = [-1 if i == node.args[3] else 1 for i in range(q.ndim)] if by_channel else []
                points = np.asarray(0 if zero_point is None else zero_point, np.float64).reshape(along)
                scales = np.asarray(scale, np.float32).astype(np.float64).reshape(along)
                return (q.numpy().astype(np.float64) - points) * scales
        return None

    # Values in integers

    def source(self, node: object) -> Value | None:
        """The quantized value that a float node stands for, of factor 1; None where it is none."""
        value = self.scaled(node)
        return None if value is None else self.plain(value)

    def scaled(self, node: object) -> Value | None:
        """As ``source``, whatever its factor."""
        if not isinstance(node, Node):
            return None
        if node not in self.sources:
            chain = [node]  # moves of moves: not by recursion, which long chains would exhaust
            while is_move(chain[-1]) and moved(chain[-1]) not in self.sources:
                chain.append(moved(chain[-1]))
            for link in reversed(chain):
                if link not in self.sources:
                    self.sources[link] = self._source(link)
        return self.sources[node]

    def _source(self, node: Node) -> Value | None:
        if node.target is DEQUANTIZE:
            return self.integers(node.args[0], node)
        if is_move(node):
            inner = moved(node)
            value = self.sources.get(inner)
            return None if value is None else MOVERS[mover(node)](self, node, value)
        return None

    def integers(self, node: Node, dequantize: Node) -> Value | None:
        """The value of a node that gives integers, which ``dequantize`` reads."""
        if node in self.quantized:
            return self.quantized[node]
        constant = self.constant(node)
        if constant is not None:
            if constant.dtype not in DTYPES:
                return None
            _, scale, zero_point = dequantize.args[:3]
            value = self.layouts.constant(self.name(node), constant.numpy(), DTYPES[constant.dtype], scale, zero_point)
            self.quantized[node] = value
            return value
        if is_move(node):
            value = self.integers(moved(node), dequantize)
            return None if value is None else MOVERS[mover(node)](self, node, value)
        return None

    def plain(self, v: Value) -> Value:
        """The value with a factor of 1."""
        if v.factor == 1:
            return v
        t = v.tensor
        y = self.b.tensor(f"{t.name}.scaled", t.shape, t.dtype, t.scale * v.factor, t.zero_point)
        self.b.add(g.Lut(y.name, t.name, y.name, self.b.constant(f"{y.name}.table", np.arange(256, dtype=np.uint8))))
        return Value(y, v.axes)

    def finish(self, v: Value, want: Want) -> Value:
        """The value in the quantization wanted, and clamped: itself, or a table of it."""
        t = v.tensor
        if want.full and (t.dtype, t.scale, t.zero_point) == (want.dtype, want.scale, want.zero_point):
            return v
        y = self.output(want, v.axes)
        if want.full:
            self.b.requantize(t, y)
        else:
            self.b.lut(t, y, lambda values: values, "requantize", want.lo, want.hi)
        return Value(y, v.axes)

    def nhwc(self, v: Value) -> Value:
        """A map as convolutions read it; of [n, c, l], a map of height 1."""
        if len(v.axes) == 3:
            n, c, length = v.shape
            v = self.layouts.reshape(v, (n, c, 1, length), f"{v.tensor.name}.map")
        return self.layouts.arrange(v, NHWC)

    def map_output(self, want: Want) -> tuple[g.Tensor, Callable[[], Value]]:
        """A map [n, h, w, c] for the result, and the value to return once it is computed."""
        if len(want.shape) == 4:
            y = self.output(want, NHWC)
            return y, lambda: Value(y, NHWC)
        n, c, length = want.shape
        wide = replace(want, shape=(n, c, 1, length))
        y = self.output(wide, NHWC, f"{want.name}.map")
        return y, lambda: self.layouts.reshape(Value(y, NHWC), want.shape, want.name)


def moved(node: Node) -> Node:
    """The node whose elements a move moves."""
    inner = node.args[0]
    return inner.args[0] if node.target is operator.getitem else inner  # type: ignore[return-value]


def mover(node: Node) -> Any:
    """The operator that moves: of an output of several, the one that splits."""
    return node.args[0].target if node.target is operator.getitem else node.target  # type: ignore[union-attr]


def quantization(node: Node, name: str, shape: tuple[int, ...]) -> Want:
    """What a quantize node makes. Raises ``ModelError`` for other than 8 bits."""
    assert node.target is QUANTIZE
    _, scale, zero_point, low, high, dtype = node.args
    if dtype not in DTYPES:
        raise ModelError(f"node '{node.name}': activations of {dtype} have no form here; quantize to 8 bits")
    kind = DTYPES[dtype]
    least, most = container_range(g.Tensor("", (1,), kind))
    return Want(name, shape, kind, float(np.float32(scale)), int(zero_point), max(low, least), min(high, most))
