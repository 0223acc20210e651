"""A model for one input becomes a model for n of them: the graph rewritten, where its operators keep inputs apart.

    several = batched(model, 4)  # None where some operator would mix them

Every activation has its n inputs side by side along one axis, the outer part of it: an axis of extent e has n * e, and
input b lies at b * e. That axis is 0 for what goes in and comes out, and is followed through the graph; a node that
would read or write across inputs ends the attempt. What does not depend on the input, a class token say, is repeated
where it meets what does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from agent import graph as g
from agent.errors import ModelError
from agent.modelfile import Array, Golden, Header, Model
from agent.validate import Limits, node_inputs, node_outputs, validate

_LAST_STAYS = (g.Linear, g.Softmax, g.ArgMax, g.LayerNorm)  # they work along the last axis
_MAPS = (g.Conv2d, g.MaxPool2d, g.AvgPool2d, g.Resize2d)  # along all but axis 0
_POINTWISE = (g.Add, g.Lut, g.Quantize, g.Dequantize)


class _MixedError(Exception):
    """A node does not keep the inputs apart."""


def batched(model: Model, n: int, limits: Limits = Limits()) -> Model | None:
    """The same model for ``n`` inputs at once, validated; None where there is none.

    Axis 0 of each input and output is n times as long; input b takes the b-th part. Its golden inputs are the model's
    own, n of them in turn. Pictures and classes stay what they are for one input.
    """
    try:
        graph, constants = _Rewriter(model.header.graph, model.constants, n).run()
        validate(graph, constants, limits)
    except (_MixedError, ModelError):
        return None
    header = msgspec.structs.replace(model.header, graph=graph, preprocess=None)
    return Model(header, constants, _golden(model, header, n))


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Arrays of several inputs, by name, as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(arrays: Mapping[str, Array], n: int) -> list[dict[str, Array]]:
    """What ``join`` has joined: views, each contiguous."""
    parts = {name: array.reshape(n, -1, *array.shape[1:]) for name, array in arrays.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(n)]


def _golden(model: Model, header: Header, n: int) -> tuple[Golden, ...]:
    pairs = model.golden
    if not pairs:
        return ()
    turns = [[pairs[(first + i) % len(pairs)] for i in range(n)] for first in range(0, len(pairs), n)]
    return tuple(Golden(join([p.inputs for p in turn]), join([p.outputs for p in turn])) for turn in turns)


class _Rewriter:
    def __init__(self, graph: g.Graph, constants: Mapping[str, Array], n: int) -> None:
        self.graph, self.constants, self.n = graph, dict(constants), n
        self.tensors = {t.name: t for t in graph.tensors}
        self.axes: dict[str, int] = dict.fromkeys(graph.inputs, 0)  # where the inputs lie; absent: in no axis
        self.fixed: dict[str, str] = {}  # outputs of Constant nodes, to their constants
        self.nodes: list[g.Node] = []
        self.repeated: dict[tuple[str, int], str] = {}

    def run(self) -> tuple[g.Graph, dict[str, Array]]:
        for node in self.graph.nodes:
            if isinstance(node, g.Constant):
                self.fixed[node.output] = node.value
            axes = [self.axes[name] for name in node_inputs(node) if name in self.axes]
            if axes:
                axis = axes[0]
                _require(all(a == axis for a in axes))
                self.axes |= dict.fromkeys(node_outputs(node), self.follow(node, axis))
                self.nodes.append(self.fed(node, axis))
            else:
                self.nodes.append(node)
        _require(all(self.axes.get(name) == 0 for name in self.graph.outputs))
        tensors = [self.longer(t, self.axes[t.name]) if t.name in self.axes else t for t in self.tensors.values()]
        return g.Graph(tuple(tensors), tuple(self.nodes), self.graph.inputs, self.graph.outputs), self.constants

    def longer(self, t: g.Tensor, axis: int) -> g.Tensor:
        shape = (*t.shape[:axis], t.shape[axis] * self.n, *t.shape[axis + 1 :])
        return msgspec.structs.replace(t, shape=shape)

    def fed(self, node: g.Node, axis: int) -> g.Node:
        """The node with what does not depend on the input repeated; all inputs have the same extent along the axis."""
        names = node_inputs(node)
        if all(name in self.axes for name in names):
            return node
        assert isinstance(node, (g.Add, g.Mul, g.Matmul, g.Concat))
        return msgspec.structs.replace(
            node, inputs=tuple(name if name in self.axes else self.repeat(name, axis) for name in names)
        )

    def repeat(self, name: str, axis: int) -> str:
        """A constant, n times along the axis."""
        _require(name in self.fixed)
        if (name, axis) not in self.repeated:
            new = f"{name}@{axis}x{self.n}"
            _require(new not in self.tensors and new not in self.constants)
            self.constants[new] = np.concatenate([self.constants[self.fixed[name]]] * self.n, axis)
            self.tensors[new] = msgspec.structs.replace(self.longer(self.tensors[name], axis), name=new)
            self.nodes.append(g.Constant(name=new, output=new, value=new))
            self.repeated[name, axis] = new
        return self.repeated[name, axis]

    def follow(self, node: g.Node, axis: int) -> int:
        """The axis of the output, from the inputs'."""
        x, y = self.tensors[node_inputs(node)[0]].shape, self.tensors[node_outputs(node)[0]].shape
        match node:
            case g.Reshape():
                before = math.prod(x[:axis])
                for to in range(len(y)):
                    if math.prod(y[:to]) == before and y[to] * math.prod(y[to + 1 :]) == math.prod(x[axis:]):
                        return to
                raise _MixedError
            case g.Transpose():
                return node.axes.index(axis)
            case g.Slice():
                _require(node.begin[axis] == 0 and node.step[axis] == 1 and y[axis] == x[axis])
            case g.Expand():
                _require(y[axis] == x[axis])
            case g.Pad():
                _require(node.before[axis] == node.after[axis] == node.interior[axis] == 0)
            case g.Concat():
                _require(node.axis != axis)
            case g.Matmul():
                _require(axis < len(x) - 2)
            case g.Mul():
                same = all(self.tensors[name].shape[axis] == y[axis] for name in node.inputs)
                _require(axis == 0 or same)
            case _ if isinstance(node, _LAST_STAYS):
                _require(axis < len(x) - 1)
            case _ if isinstance(node, _MAPS):
                _require(axis == 0)
            case _:
                _require(isinstance(node, _POINTWISE))  # not an aten node: what it does with an axis is not known
        return axis


def _require(holds: bool) -> None:
    if not holds:
        raise _MixedError
