"""How much of a graph has an int8 form: the native share of its operators and of its multiply-accumulates.

    share = coverage.share(model.header.graph, model.constants)
    print(f"{share.of_macs:.1%} of MACs native; in torch: {', '.join(f.operator for f in share.fallbacks)}")

Native is what is not an ``aten::`` node: a property of the graph, whatever kernels a machine has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent import graph as g

Tensors = Mapping[str, g.Tensor]
Constants = Mapping[str, NDArray[np.generic]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fallback:
    """An operator that runs in torch: its ``aten::`` name, how many nodes are it, and their multiply-accumulates."""

    operator: str
    count: int
    macs: int


@dataclass(frozen=True)
class Share:
    """Counts over a graph. ``fallbacks`` come with the most multiply-accumulates first, then by count and name."""

    operators: int
    native_operators: int
    macs: int
    native_macs: int
    fallbacks: tuple[Fallback, ...]

    @property
    def of_operators(self) -> float:
        """0..1."""
        return self.native_operators / self.operators if self.operators else 1.0

    @property
    def of_macs(self) -> float:
        """0..1; 1 where nothing multiplies."""
        return self.native_macs / self.macs if self.macs else 1.0


def share(graph: g.Graph, constants: Constants) -> Share:
    """What of a valid graph is native."""
    tensors = {t.name: t for t in graph.tensors}
    fallen: dict[str, tuple[int, int]] = {}
    total = 0
    for node in graph.nodes:
        cost = macs(node, tensors, constants)
        total += cost
        if isinstance(node, g.Aten):
            count, before = fallen.get(node.target, (0, 0))
            fallen[node.target] = count + 1, before + cost
    rows = [Fallback(operator, *sums) for operator, sums in fallen.items()]
    rows.sort(key=lambda f: (-f.macs, -f.count, f.operator))
    native = len(graph.nodes) - sum(f.count for f in rows)
    return Share(len(graph.nodes), native, total, total - sum(f.macs for f in rows), tuple(rows))


def macs(node: g.Node, tensors: Tensors, constants: Constants) -> int:
    """Multiply-accumulates of one run: those of convolutions and matrix products; other operators have none.

    Padding counts, as it is usual. An ``aten::`` node whose operands aren't tensors of a known shape has none.
    """
    match node:
        case g.Conv2d() | g.Linear():
            return math.prod(tensors[node.output].shape) * math.prod(constants[node.weight].shape[1:])
        case g.Matmul():
            return math.prod(tensors[node.output].shape) * tensors[node.inputs[0]].shape[-1]
        case g.Aten():
            return _aten(node, tensors, constants)
    return 0


def _aten(node: g.Aten, tensors: Tensors, constants: Constants) -> int:
    name = node.target.removeprefix("aten::").partition(".")[0]
    if name not in _PRODUCTS:
        return 0
    operands, count = _PRODUCTS[name]
    args, kwargs = msgspec.json.decode(node.args), msgspec.json.decode(node.kwargs)
    shapes = []
    for position, keyword in operands:
        given = args[position] if position < len(args) else kwargs.get(keyword)
        shape = _shape(given, node, tensors, constants)
        if not shape:
            return 0
        shapes.append(shape)
    transposed = name == "convolution" and len(args) > 6 and args[6] is True
    return (_transposed if transposed else count)(tensors[node.outputs[0]].shape, *shapes)


def _shape(given: Any, node: g.Aten, tensors: Tensors, constants: Constants) -> Shape:
    """Of the tensor that an argument stands for, see ``agent.graph.Aten``; empty where it is none."""
    if not isinstance(given, str):
        return ()
    name = given[1:].partition(":")[0]
    if given[:1] == "$" and name.isdecimal() and int(name) < len(node.inputs):
        return tensors[node.inputs[int(name)]].shape
    return constants[name].shape if given[:1] == "#" and name in constants else ()


def _convolution(y: Shape, x: Shape, weight: Shape) -> int:
    """weight: [oc, ic / groups, …], whatever the rank."""
    return math.prod(y) * math.prod(weight[1:])


def _transposed(y: Shape, x: Shape, weight: Shape) -> int:
    """weight: [ic, oc / groups, …]: each input element is spread over all of them."""
    return math.prod(x) * math.prod(weight[1:])


def _product(y: Shape, a: Shape, b: Shape) -> int:
    """a: […, m, k], or [k]; b: its other factor."""
    return math.prod(y) * a[-1]


def _attention(y: Shape, query: Shape, key: Shape, value: Shape) -> int:
    """query […, l, e], key [..., s, e], value [..., s, ev]: the scores and their sum of values."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]) if min(len(query), len(key)) > 1 else 0


_CONVOLUTION = (((0, "input"), (1, "weight")), _convolution)
_LEFT_RIGHT = ((0, "self"), (1, "mat2"))
_PRODUCTS: Mapping[str, tuple[Sequence[tuple[int, str]], Callable[..., int]]] = {
    "conv1d": _CONVOLUTION,
    "conv2d": _CONVOLUTION,
    "conv3d": _CONVOLUTION,
    "convolution": _CONVOLUTION,
    "conv_transpose1d": (_CONVOLUTION[0], _transposed),
    "conv_transpose2d": (_CONVOLUTION[0], _transposed),
    "conv_transpose3d": (_CONVOLUTION[0], _transposed),
    "linear": (((0, "input"), (1, "weight")), _product),
    "addmm": (((1, "mat1"), (2, "mat2")), _product),
    "baddbmm": (((1, "batch1"), (2, "batch2")), _product),
    "mm": (_LEFT_RIGHT, _product),
    "bmm": (_LEFT_RIGHT, _product),
    "matmul": (((0, "self"), (1, "other")), _product),
    "scaled_dot_product_attention": (((0, "query"), (1, "key"), (2, "value")), _attention),
}
