"""A PT2E-quantized module becomes a graph.

The walk goes over quantize nodes: each one ends a pattern (convolution, bias, clamp …) that has an int8 form, and the
handlers of ``products``, ``pointwise``, ``windows`` and ``rows`` add it. What matches no pattern stays float: ``Aten``
nodes between ``Dequantize`` and ``Quantize``, so that any exported module runs (``fallback``).

Layout: where a torch tensor's axes lie is a matter of ``layouts``. A 4-D input is taken as NHWC where torch has NCHW;
outputs come with torch's axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from agent import graph as g
from agent.errors import ModelError
from models.intake.aten import moves, pointwise, products, rows, windows  # noqa: F401  (they register their handlers)
from models.intake.aten.fallback import dtype_of, emit, refuse_what_has_no_form
from models.intake.aten.layouts import NHWC, Value, identity
from models.intake.aten.operators import (
    CLAMPS,
    DEQUANTIZE,
    MATMULS,
    POINTWISE,
    PRODUCTS,
    QUANTIZE,
    QUOTIENTS,
    SOFTMAX,
    WEIGHTED,
    argument,
    aten,
    dtypes_of,
    is_move,
    shape_of,
)
from models.intake.aten.pointwise import table
from models.intake.aten.simplify import rename, simplify
from models.intake.aten.walk import DTYPES, HANDLERS, MOVERS, Walk, Want, moved, mover, quantization


def to_graph(
    module: GraphModule, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> tuple[g.Graph, dict[str, np.ndarray]]:
    """The graph and its constants.

    module: its nodes know their shapes (``meta["val"]`` or ``meta["tensor_meta"]``); ``meta["source_name"]``, where
    there, names a node's tensor. inputs, outputs: names, in order; by default an only input is ``x``, several have
    their own names, an only output is ``logits``, several are named by their keys, or ``output_0``, ``output_1``.
    Raises ``ModelError`` with the nodes' names for what can't be brought over.
    """
    refuse_what_has_no_form(module)
    return _Intake(module).run(inputs, outputs)


class _Intake:
    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.walk = Walk(module)
        self.floats: dict[Node, Value] = {}  # by any node: its value as f32 or s32
        self.parts: dict[Node, list[Value]] = {}  # by a node of several outputs
        self.inputs: list[g.Tensor] = []

    def run(self, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> tuple[g.Graph, dict[str, np.ndarray]]:
        placeholders = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        unused = [n.name for n in placeholders if not n.users]
        if unused:
            raise ModelError(f"the module never uses its input '{unused[0]}': leave it out")
        results = _results(self.module)
        self.names(placeholders, inputs, "input", ["x"] if len(placeholders) == 1 else None)
        names = self.names([r for _, r in results], outputs, "output", _output_names(results))
        for node in placeholders:
            self.placeholder(node)
        for node in self.module.graph.nodes:
            if node.target is QUANTIZE and node not in self.walk.quantized and self.walk.constant(node) is None:
                self.walk.quantized[node] = self.lower(node)
        values = [self.result(node) for _, node in results]
        tensors: list[g.Tensor] = []
        for value in values:
            t = self.walk.layouts.arrange(value, identity(len(value.axes))).tensor
            if t in tensors or t in self.inputs:  # an output may have a tensor of its own only
                copy = self.walk.b.like(t, f"{t.name}.copy", t.shape)
                self.walk.b.add(g.Reshape(copy.name, t.name, copy.name))
                t = copy
            tensors.append(t)
        graph, constants = simplify(*self.walk.b.finish(self.inputs, tensors))
        return rename(graph, dict(zip(graph.outputs, names, strict=True))), constants

    def names(
        self, nodes: Sequence[Node], given: Sequence[str] | None, what: str, default: list[str] | None
    ) -> list[str]:
        """Names of inputs or outputs, which their tensors will have."""
        if given is not None and len(given) != len(nodes):
            raise ModelError(f"the module has {len(nodes)} {what}s, not the {len(given)} that are named")
        names = list(given or [])
        for i, node in enumerate(nodes if given is None else []):
            own = node.meta.get("source_name")
            names.append(str(own or (default[i] if default else node.name)))
        self.walk.names.update(zip(nodes, names, strict=True))
        return names

    # Inputs and outputs

    def placeholder(self, node: Node) -> None:
        """An input is quantized where everything that reads it quantizes it in the same way."""
        walk, shape, dtype = self.walk, shape_of(node), dtypes_of(node)[0]
        axes = NHWC if len(shape) == 4 else identity(len(shape))
        users = list(node.users)
        if dtype in DTYPES and all(u.target is DEQUANTIZE and u.args[1:3] == users[0].args[1:3] for u in users):
            t = walk.b.tensor(walk.name(node), [shape[a] for a in axes] or [1], DTYPES[dtype], *users[0].args[1:3])
            walk.quantized[node] = Value(t, axes)
        elif all(u.target is QUANTIZE and u.args[1:] == users[0].args[1:] for u in users):
            want = quantization(users[0], walk.name(node), shape)
            t = walk.output(want, axes)
            for user in users:
                walk.quantized[user] = walk.finish(Value(t, axes), want)
        else:
            kind = dtype_of(dtype)
            if kind is None:
                raise ModelError(f"the input '{node.name}' is {dtype}, which no model file holds")
            axes = axes if kind == "f32" else identity(len(shape))
            t = walk.b.tensor(walk.name(node), [shape[a] for a in axes] or [1], kind)
            self.floats[node] = Value(t, axes)
        self.inputs.append(t)

    def result(self, node: Node) -> Value:
        """What the module returns, as it is there: quantized or not."""
        if node in self.walk.quantized:
            return self.walk.quantized[node]
        return self.value(node)

    # Values in float

    def value(self, node: Node) -> Value:
        """The node's value as f32, or s32 for whole numbers, in whatever layout."""
        if node not in self.floats:
            for missing in self.missing(node):
                self.floats[missing] = self.emit(missing)
        return self.floats[node]

    def missing(self, node: Node) -> list[Node]:
        """The node, after all that it depends on and that is no value yet."""
        needed, left = {node}, [node]
        while left:
            for arg in self.reads(left.pop()):
                if arg not in needed and arg not in self.floats:
                    needed.add(arg)
                    left.append(arg)
        return [n for n in self.module.graph.nodes if n in needed]

    def reads(self, node: Node) -> Iterable[Node]:
        """The float values that a node's value is made of."""
        if node in self.floats or self.walk.scaled(node) is not None or self.walk.real(node) is not None:
            return []
        if self.special(node):
            return []
        return node.all_input_nodes

    def special(self, node: Node) -> bool:
        """Whether a quantized input gives the node a form of its own."""
        return node.target in (*SOFTMAX, aten.argmax.default) and self.walk.scaled(node.args[0]) is not None

    def in_order(self, node: Node) -> Value:
        """The value with torch's axes."""
        value = self.value(node)
        self.floats[node] = value
        return self.walk.layouts.arrange(value, identity(len(value.axes)))

    def emit(self, node: Node) -> Value:
        walk = self.walk
        source = walk.source(node)
        if source is not None:
            source = walk.layouts.arrange(source, identity(len(source.axes)))
            t = walk.b.tensor(walk.name(node), source.tensor.shape, "f32")
            walk.b.add(g.Dequantize(t.name, source.tensor.name, t.name))
            return Value(t, source.axes)
        constant = walk.real(node)
        if constant is not None:
            whole = constant.dtype.kind != "f"
            array = constant.astype(np.int32 if whole else np.float32)
            return walk.layouts.constant(walk.name(node), array, "s32" if whole else "f32")
        if self.special(node):
            special = self.softmax(node) if node.target in SOFTMAX else rows.argmax(walk, node, walk.name(node))
            if special is not None:
                return special
        if is_move(node):
            value = MOVERS[mover(node)](walk, node, self.value(moved(node)))
            if value is not None:
                return value
        if node.op != "call_function":
            raise ModelError(f"node '{node.name}': a {node.op} has no form in the graph")
        if str(node.target) == "<built-in function getitem>":
            parent, index = node.args
            return self.part(parent)[index]
        return self.part(node)[0]

    def part(self, node: Node) -> list[Value]:
        """The outputs of a torch operator."""
        if node not in self.parts:
            self.parts[node] = emit(self.walk, node, self.in_order)
        return self.parts[node]

    def softmax(self, node: Node) -> Value | None:
        x = rows.softmax_input(self.walk, node)
        if x is None:
            return None
        t = self.walk.b.tensor(self.walk.name(node), x.tensor.shape, "f32")
        self.walk.b.softmax(x.tensor, t, x.factor)
        return Value(t, x.axes)

    # Patterns that end in a quantize node

    def lower(self, node: Node) -> Value:
        walk, source = self.walk, node.args[0]
        want = quantization(node, walk.names.get(node) or walk.name(source), shape_of(source))
        value = walk.source(source)
        if value is not None:
            return walk.finish(value, want)
        if source.target in POINTWISE:
            value = table(walk, source, want)
            if value is not None:
                return value
        inner, clamped = _clamped(walk, source, want)
        inner, clamped = _scaled(walk, inner, clamped)
        if node not in walk.names and "source_name" not in source.meta:
            clamped = replace(clamped, name=walk.name(inner))
        handler = HANDLERS.get(inner.target)
        made = handler(walk, inner, clamped) if handler else None
        if made is not None:
            return made
        x = self.value(source)
        if x.tensor.dtype != "f32":
            raise ModelError(f"node '{source.name}': whole numbers are quantized; convert them to float first")
        y = walk.output(want, x.axes)
        walk.b.add(g.Quantize(y.name, x.tensor.name, y.name))
        return Value(y, x.axes)


def _clamped(walk: Walk, source: Node, want: Want) -> tuple[Node, Want]:
    """The operator before a clamp that its requantization does, and the clamp in containers."""
    if source.target not in CLAMPS or len(source.args[0].users) != 1:
        return source, want
    least, most = _bounds(source)
    lo, hi = (
        int(np.clip(np.rint(np.float32(bound) / np.float32(want.scale)) + want.zero_point, want.lo, want.hi))
        for bound in (least, most)
    )
    return source.args[0], replace(want, lo=lo, hi=hi)


def _scaled(walk: Walk, source: Node, want: Want) -> tuple[Node, Want]:
    """The operator before a product with a positive number that its multiplier absorbs."""
    if source.target not in PRODUCTS | QUOTIENTS or not isinstance(source.args[0], Node):
        return source, want
    inner, number = source.args[0], source.args[1]
    times = float(number) if isinstance(number, (int, float)) else 0.0
    if inner.target not in WEIGHTED | MATMULS or len(inner.users) != 1 or times <= 0:
        return source, want
    return inner, replace(want, times=1 / times if source.target in QUOTIENTS else times)


def _bounds(node: Node) -> tuple[float, float]:
    """The clamp of an activation, in real values."""
    name = str(node.target)
    if "relu6" in name:
        return 0.0, 6.0
    if "relu" in name:
        return 0.0, float("inf")
    if "clamp_min" in name:
        return float(argument(node, 1, "min")), float("inf")
    if "clamp_max" in name:
        return float("-inf"), float(argument(node, 1, "max"))
    hardtanh = "hardtanh" in name
    low = argument(node, 1, "min_val" if hardtanh else "min", -1.0 if hardtanh else None)
    high = argument(node, 2, "max_val" if hardtanh else "max", 1.0 if hardtanh else None)
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def _results(module: GraphModule) -> list[tuple[str, Node]]:
    """What the module returns, each with its key in a dict, or nothing."""
    output = next(n for n in module.graph.nodes if n.op == "output")
    paths, _ = pytree.tree_flatten_with_path(output.args[0])
    returned = [leaf for _, leaf in paths]
    nodes = [r for r in returned if isinstance(r, Node)]
    if not nodes:
        raise ModelError("the module returns no tensor")
    keys = _keys(module, len(returned)) or [_key(path) for path, _ in paths]
    return [(key, r) for key, r in zip(keys, returned, strict=True) if isinstance(r, Node)]


def _keys(module: GraphModule, count: int) -> list[str] | None:
    """The keys of what the exported module returned, where that was a dict."""
    info = getattr(module.graph._codegen, "pytree_info", None)
    spec: Any = getattr(info, "out_spec", None)
    if spec is None or spec.num_leaves != count:
        return None
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(count)), spec))
    return [_key(path) for path, _ in paths]


def _key(path: Sequence[Any]) -> str:
    """The keys of the dicts that a result lies in."""
    return ".".join(str(k.key) for k in path if hasattr(k, "key"))


def _output_names(results: list[tuple[str, Node]]) -> list[str]:
    if len(results) == 1:
        return [results[0][0] or "logits"]
    names = [key or f"output_{i}" for i, (key, _) in enumerate(results)]
    return names if len(set(names)) == len(names) else [f"output_{i}" for i in range(len(names))]
