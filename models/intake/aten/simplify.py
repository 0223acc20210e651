"""A graph with fewer nodes that computes the same bytes.

Each rule is exact: a linear layer's columns in another order, one table in place of several, nothing that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED, canonical_zero_point, product_multiplier
from agent.validate import node_inputs, node_outputs

Constants = dict[str, np.ndarray]


def simplify(graph: g.Graph, constants: Constants) -> tuple[g.Graph, Constants]:
    """The graph after every rule, without tensors and constants that nothing uses."""
    graph = _without_dead_nodes(graph)
    graph = _one_reshape(graph)
    graph, constants = _columns_in_place(graph, dict(constants))
    graph, constants = _tables_of_tables(graph, constants)
    graph = _without_dead_nodes(graph)
    return graph, {name: constants[name] for name in _constants_used(graph, constants)}


def rename(graph: g.Graph, names: Mapping[str, str]) -> g.Graph:
    """Tensors under other names, and with them the nodes named like them; one that had such a name gives way."""
    names = {old: new for old, new in names.items() if old != new}
    taken = {t.name for t in graph.tensors} | set(names.values())
    full = dict(names)
    for new in names.values():
        if new in {t.name for t in graph.tensors} and new not in names:
            i = next(i for i in range(1, len(taken) + 2) if f"{new}_{i}" not in taken)
            full[new] = f"{new}_{i}"
            taken.add(full[new])

    def named(name: str) -> str:
        return full.get(name, name)

    nodes = []
    for node in graph.nodes:
        changes: dict[str, object] = {"name": named(node.name)}
        for field in ("input", "output"):
            if hasattr(node, field):
                changes[field] = named(getattr(node, field))
        for field in ("inputs", "outputs"):
            if hasattr(node, field):
                changes[field] = tuple(map(named, getattr(node, field)))
        nodes.append(msgspec.structs.replace(node, **changes))
    tensors = tuple(msgspec.structs.replace(t, name=named(t.name)) for t in graph.tensors)
    return g.Graph(tensors, tuple(nodes), tuple(map(named, graph.inputs)), tuple(map(named, graph.outputs)))


def _readers(graph: g.Graph) -> Counter[str]:
    """How often each tensor is read; being an output counts."""
    return Counter([*(name for n in graph.nodes for name in node_inputs(n)), *graph.outputs])


def _without_dead_nodes(graph: g.Graph) -> g.Graph:
    read = set(graph.outputs)
    nodes: list[g.Node] = []
    for node in reversed(graph.nodes):
        if read.intersection(node_outputs(node)):
            nodes.append(node)
            read.update(node_inputs(node))
    kept = {name for n in nodes for name in node_outputs(n)} | set(graph.inputs)
    tensors = tuple(t for t in graph.tensors if t.name in kept)
    return g.Graph(tensors, tuple(reversed(nodes)), graph.inputs, graph.outputs)


def _constants_used(graph: g.Graph, constants: Constants) -> list[str]:
    used = set()
    for node in graph.nodes:
        if isinstance(node, g.Aten):
            text = bytes(node.args) + bytes(node.kwargs)
            used.update(name for name in constants if f'"#{name}'.encode() in text)
        else:
            fields = (getattr(node, f) for f in node.__struct_fields__ if f not in ("name", "op", "function"))
            used.update(f for f in fields if isinstance(f, str) and f in constants)
    return [name for name in constants if name in used]


def _one_reshape(graph: g.Graph) -> g.Graph:
    """A reshape of a reshape is one; one that gives back the shape is none, but where it makes an output."""
    tensors = {t.name: t for t in graph.tensors}
    origin: dict[str, str] = {}  # of a reshaped tensor, the one that was reshaped first
    same: dict[str, str] = {}  # of a tensor that is another under the same shape, that one
    nodes: list[g.Node] = []
    for node in graph.nodes:
        if not isinstance(node, g.Reshape):
            nodes.append(_reading(node, same))
            continue
        source = same.get(node.input, node.input)
        origin[node.output] = origin.get(source, source)
        if tensors[origin[node.output]].shape == tensors[node.output].shape and node.output not in graph.outputs:
            same[node.output] = origin[node.output]
        else:
            nodes.append(g.Reshape(node.name, origin[node.output], node.output))
    return _without_dead_nodes(g.Graph(graph.tensors, tuple(nodes), graph.inputs, graph.outputs))


def _reading(node: g.Node, instead: Mapping[str, str]) -> g.Node:
    """The node, reading some tensors in place of others."""
    if not set(node_inputs(node)) & instead.keys():
        return node
    if hasattr(node, "inputs"):
        return msgspec.structs.replace(node, inputs=tuple(instead.get(n, n) for n in node.inputs))
    return msgspec.structs.replace(node, input=instead.get(node.input, node.input))  # type: ignore[union-attr]


def _columns_in_place(graph: g.Graph, constants: Constants) -> tuple[g.Graph, Constants]:
    """Linear(Reshape(Transpose(x))), where rows stay rows: the weight's columns take the transpose's order."""
    tensors, readers = {t.name: t for t in graph.tensors}, _readers(graph)
    by_output = {name: n for n in graph.nodes for name in node_outputs(n)}
    changed: dict[str, g.Node] = {}
    for node in graph.nodes:
        flat = by_output.get(node.input) if isinstance(node, g.Linear) else None
        turn = by_output.get(flat.input) if isinstance(flat, g.Reshape) else None
        if not (isinstance(node, g.Linear) and isinstance(flat, g.Reshape) and isinstance(turn, g.Transpose)):
            continue
        x, y, rows = tensors[turn.input], tensors[turn.output], tensors[flat.output]
        weight = constants[node.weight]
        whole = len(rows.shape) == 2 and rows.shape[0] == x.shape[0] and turn.axes[0] == 0
        if not whole or readers[turn.output] != 1 or readers[flat.output] != 1:
            continue
        back = np.argsort(turn.axes[1:])
        order = np.arange(weight.shape[1]).reshape(y.shape[1:]).transpose(back).ravel()
        constants[node.weight] = np.ascontiguousarray(weight[:, order])
        changed[flat.name] = g.Reshape(flat.name, turn.input, flat.output)
    nodes = tuple(changed.get(n.name, n) for n in graph.nodes)
    return _without_dead_nodes(g.Graph(graph.tensors, nodes, graph.inputs, graph.outputs)), constants


def _tables_of_tables(graph: g.Graph, constants: Constants) -> tuple[g.Graph, Constants]:
    """A table of a table, or a product of a tensor and its table, is one table (SiLU and hard-swish as products)."""
    tensors, readers = {t.name: t for t in graph.tensors}, _readers(graph)
    luts: dict[str, g.Lut] = {}  # by output, those that only one node reads
    nodes: list[g.Node] = []
    for node in graph.nodes:
        made: g.Node = node
        if isinstance(node, g.Lut) and node.input in luts:
            inner = luts[node.input]
            table = constants[node.table][constants[inner.table]]
            function = node.function if inner.function == "requantize" else "expression"
            made = g.Lut(node.name, inner.input, node.output, _add(constants, f"{node.output}.table", table), function)
        elif isinstance(node, g.Mul) and tensors[node.inputs[0]].shape == tensors[node.inputs[1]].shape:
            merged = _product(node, luts, tensors, constants)
            made = merged or node
        if isinstance(made, g.Lut) and readers[made.output] == 1:
            luts[made.output] = made
        nodes.append(made)
    return _without_dead_nodes(g.Graph(graph.tensors, tuple(nodes), graph.inputs, graph.outputs)), constants


def _product(
    node: g.Mul, luts: Mapping[str, g.Lut], tensors: Mapping[str, g.Tensor], constants: Constants
) -> g.Lut | None:
    """The product as a table of the one tensor that both operands come from; None where they come from two."""
    names = [luts[n].input if n in luts else n for n in node.inputs]
    roots = next(([a, b] for a, b in (names, (node.inputs[0], names[1]), (names[0], node.inputs[1])) if a == b), None)
    if roots is None or names == list(node.inputs):
        return None
    source, out = tensors[roots[0]], tensors[node.output]
    values = []
    for name in node.inputs:
        entries = np.arange(256) if name == source.name else constants[luts[name].table].astype(np.int64)
        values.append(entries - canonical_zero_point(tensors[name]))
    m = np.float32(product_multiplier(*(tensors[n] for n in node.inputs), out))
    shift = canonical_zero_point(out) - out.zero_point
    zero = canonical_zero_point(out)
    scaled = np.rint((values[0] * values[1]).astype(np.int32).astype(np.float32) * m)
    table = (np.clip(scaled, node.lo + shift - zero, node.hi + shift - zero) + zero).astype(np.uint8)
    assert source.dtype in QUANTIZED
    return g.Lut(node.name, source.name, node.output, _add(constants, f"{node.output}.table", table), "expression")


def _add(constants: Constants, name: str, array: np.ndarray) -> str:
    base, i = name, 1
    while name in constants:
        name, i = f"{base}_{i}", i + 1
    constants[name] = array
    return name
