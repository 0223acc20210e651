"""Hostile model files: the container's bytes, its header, the graph in it, and the constants.

Most mistakes hide behind a container that can be read, so most cases have one: the graph is changed as JSON, and often
mended afterwards (``tests.fuzz.mend``), so that what was changed is not refused for what follows from it.
"""

from __future__ import annotations

import copy
import importlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent import graph as g
from agent.demand import demand
from agent.engine import load, native
from agent.errors import BackendError, ModelError
from agent.modelfile import Golden, Model, read, write
from agent.validate import Limits, validate
from tests.agent_process import DIGITS
from tests.fuzz.mend import mend
from tests.fuzz.mutations import Rng, hostile_int, mutate_bytes, mutate_json, pick
from tests.moves import MOVES
from tests.operators import OPERATORS, Sketch, random_inputs

# What a case may take where it runs: seconds are short, and sanitizers slow.
SMALL = Limits(activations=32 << 20, weights=32 << 20, operations=1 << 24)
SEEDS_OF_AN_OPERATOR = 8
KINDS = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "F32": np.float32, "I64": np.int64}


@dataclass
class File:
    """A model file, taken apart. header: the one of int8d, as JSON; arrays: by name, dtype, shape and bytes."""

    header: dict[str, Any]
    arrays: dict[str, tuple[str, list[int], bytes]]

    @staticmethod
    def parse(data: bytes) -> File:
        size = struct.unpack("<Q", data[:8])[0]
        outer = json.loads(data[8 : 8 + size])
        header = json.loads(outer.pop("__metadata__")["int8d"])
        arrays = {}
        for name, entry in outer.items():
            begin, end = entry["data_offsets"]
            arrays[name] = (entry["dtype"], entry["shape"], data[8 + size + begin : 8 + size + end])
        return File(header, arrays)

    def outer(self) -> dict[str, Any]:
        """The container's header."""
        entries: dict[str, Any] = {"__metadata__": {"int8d": json.dumps(self.header)}}
        at = 0
        for name, (dtype, shape, data) in self.arrays.items():
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
            at += len(data)
        return entries

    def encode(self, outer: dict[str, Any] | None = None) -> bytes:
        text = json.dumps(self.outer() if outer is None else outer).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in self.arrays.values())


class ModelFile:
    """The reader of model files, and the engine for what it lets pass."""

    name = "model"
    allowed: tuple[type[Exception], ...] = (ModelError, BackendError)

    def prepare(self) -> None:
        importlib.import_module("agent.engine.torch_backend")  # seconds, which are no case's
        self.seeds: list[bytes] = []
        for operator in OPERATORS | MOVES:
            self.seeds += _small(operator)
        self.seeds += [DIGITS.read_bytes()] * (len(self.seeds) // 12)
        self.files = [File.parse(data) for data in self.seeds]

    def make(self, rng: Rng) -> bytes:
        at = int(rng.integers(len(self.seeds)))
        kind = rng.random()
        if kind < 0.15:
            return mutate_bytes(rng, self.seeds[at])
        file = copy.deepcopy(self.files[at])
        if kind < 0.3:
            return file.encode(_hostile_container(rng, file.outer()))
        if kind < 0.42 and file.arrays:
            _hostile_constants(rng, file)
        else:
            for _ in range(pick(rng, [1, 1, 1, 2, 3])):
                _hostile_graph(rng, file)
        if rng.random() < 0.7:
            mend(rng, file.header, file.arrays)
        return file.encode()

    def run(self, path: Path, rng: Rng) -> None:
        model = read(path)
        graph = model.header.graph
        validate(graph, model.constants, SMALL)
        inputs = random_inputs(model, rng)
        isas = native.isas()
        first, *others = [load(model, 1 + int(rng.integers(2)), isa=isa) for isa in ("ref", pick(rng, isas))]
        needed = demand(graph, model.constants)
        assert first.arena_bytes <= 2 * needed.activations + 4096 * len(graph.nodes), "the demand was understated"
        expected = first.run(inputs)
        if any(isinstance(n, g.Aten) for n in graph.nodes):
            return
        for engine in others:
            assert engine.arena_bytes <= 2 * needed.activations + 4096 * len(graph.nodes), "too large an arena"
            assert engine.weight_bytes <= needed.weights, "more weights than the demand said"
            for name, array in engine.run(inputs).items():
                assert array.tobytes() == expected[name].tobytes(), f"'{name}' differs from ref on {engine.isa}"


def _small(operator: str) -> list[bytes]:
    """Files of an operator's random models, the small ones, each with a golden pair."""
    import tempfile

    found: list[bytes] = []
    case = 0
    with tempfile.TemporaryDirectory() as folder:
        while len(found) < SEEDS_OF_AN_OPERATOR:
            rng = np.random.default_rng([case, 99])
            case += 1
            model = (OPERATORS | MOVES)[operator](Sketch(rng))
            needed = demand(model.header.graph, model.constants)
            if case < 500 and (needed.operations > 60_000 or needed.activations > 60_000):
                continue
            if not found:
                inputs = random_inputs(model, rng)
                model = Model(model.header, model.constants, (Golden(inputs, load(model).run(inputs)),))
            write(Path(folder) / "m", model)
            found.append((Path(folder) / "m").read_bytes())
    return found


def _hostile_container(rng: Rng, outer: dict[str, Any]) -> dict[str, Any]:
    names = [k for k in outer if k != "__metadata__"]
    if not names or rng.random() < 0.1:
        mutate_json(rng, outer)
        return outer
    name = pick(rng, names)
    entry = outer[name]
    kind = rng.integers(7)
    if kind == 0:
        entry["dtype"] = pick(rng, ["U8", "I8", "I32", "F32", "I64", "F16", "BF16", "BOOL", "F64", "F8_E4M3", "", None])
    elif kind == 1 and entry["shape"]:
        axis = int(rng.integers(len(entry["shape"])))
        entry["shape"][axis] = hostile_int(rng, entry["shape"][axis])
    elif kind == 2:
        side = int(rng.integers(2))
        entry["data_offsets"][side] = hostile_int(rng, entry["data_offsets"][side])
    elif kind == 3:
        other = outer[pick(rng, names)]
        field = pick(rng, ["dtype", "shape", "data_offsets"])
        entry[field], other[field] = other[field], entry[field]
    elif kind == 4:
        return {
            pick(rng, [name + "x", pick(rng, names), "golden/0/in/x"]) if k == name else k: v for k, v in outer.items()
        }
    elif kind == 5:
        entry["shape"] = pick(rng, [[], [0], [1] * 40, entry["shape"][::-1], [*entry["shape"], 1], [2**32, 2**32]])
    else:
        mutate_json(rng, entry)
    return outer


def _hostile_constants(rng: Rng, file: File) -> None:
    name = pick(rng, list(file.arrays))
    dtype, shape, data = file.arrays[name]
    count = len(data)
    kind = rng.integers(6)
    if kind == 0:
        data = bytes([int(pick(rng, [0, 0x7F, 0x80, 0xFF, 1]))]) * count
    elif kind == 1:
        word = pick(rng, [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\0\0\0", b"\0\0\0\x80",
                          b"\xff\xff\xff\x7f", b"\x00\x00\x80\x00"])  # fmt: skip
        at = int(rng.integers(0, max(1, count // 4))) * 4
        data = (data[:at] + word + data[at + 4 :])[:count] if rng.random() < 0.5 else (word * (count // 4 + 1))[:count]
    elif kind == 2:
        data = rng.bytes(count)
    elif kind == 3:
        dtype = pick(rng, list(KINDS))
        data = (data * 8)[: int(np.prod(shape)) * np.dtype(KINDS[dtype]).itemsize]
    elif kind == 4:
        del file.arrays[name]
        return
    else:
        other = pick(rng, list(file.arrays))
        dtype, shape, data = file.arrays[other]
    file.arrays[name] = (dtype, list(shape), data)


def _hostile_graph(rng: Rng, file: File) -> None:
    kind = rng.random()
    try:
        graph = file.header["graph"]
        if kind < 0.1:
            mutate_json(rng, file.header)
        elif kind < 0.3:
            mutate_json(rng, pick(rng, graph["tensors"]))
        elif kind < 0.4:
            tensor = pick(rng, graph["tensors"])
            axis = int(rng.integers(len(tensor["shape"])))
            tensor["shape"][axis] = hostile_int(rng, tensor["shape"][axis])
        elif kind < 0.8:
            mutate_json(rng, pick(rng, graph["nodes"]))
        else:
            _reorder(rng, graph)
    except (TypeError, KeyError, IndexError, ValueError, OverflowError, AttributeError, StopIteration):
        return  # an earlier mutation left nothing to change here


def _reorder(rng: Rng, graph: dict[str, Any]) -> None:
    """Nodes and tensors doubled, removed, swapped or turned into others."""
    nodes, tensors = graph["nodes"], graph["tensors"]
    node = pick(rng, nodes)
    kind = rng.integers(8)
    if kind == 0:
        nodes.append({**copy.deepcopy(node), "name": "again", "output": tensors[-1]["name"]})
    elif kind == 1:  # the same operator again, with an output of its own
        out = next(t for t in tensors if t["name"] == node["output"])
        tensors.append({**copy.deepcopy(out), "name": "twin"})
        nodes.append({**copy.deepcopy(node), "name": "twin", "output": "twin"})
        graph["outputs"] = pick(rng, [[*graph["outputs"], "twin"], ["twin"]])
    elif kind == 2:
        nodes.remove(node)
    elif kind == 3:
        other = int(rng.integers(len(nodes)))
        at = nodes.index(node)
        nodes[at], nodes[other] = nodes[other], nodes[at]
    elif kind == 4:
        tags = [str(t.__struct_config__.tag) for t in g.Node.__args__]
        node["op"] = pick(rng, tags)
    elif kind == 5:  # what is between becomes visible
        graph["outputs"] = [pick(rng, tensors)["name"] for _ in range(int(rng.integers(1, 4)))]
    elif kind == 6:  # a chain of two: a reshape, or the identity by a table, of the output
        out = next(t for t in tensors if t["name"] == node["output"])
        shape = pick(rng, [out["shape"], out["shape"][::-1], [int(np.prod(out["shape"]))], [1, 1, *out["shape"]]])
        tensors.append({**copy.deepcopy(out), "name": "more", "shape": shape})
        nodes.append({"op": "reshape", "name": "more", "input": out["name"], "output": "more"})
        graph["outputs"] = pick(rng, [["more"], [*graph["outputs"], "more"]])
    else:
        _aten(rng, graph)


def _aten(rng: Rng, graph: dict[str, Any]) -> None:
    """A torch operator behind a float tensor, harmless or not."""
    floats = [t for t in graph["tensors"] if t["dtype"] in ("f32", "s32")]
    source = pick(rng, floats or graph["tensors"])
    target = pick(rng, ATEN)
    args = pick(rng, [["$0"], ["$0", "$0"], ["$0", 1], ["$0", [2**40]], ["$0", [-1]], ["$1"], ["$x"], ["#c0"], ["#"],
                      [], {}, None, "$0", ["$0", None, "x"], [[2**40]], [2**62], [["$0"], 0], ["x", True]])  # fmt: skip
    kwargs = pick(rng, [{}, {}, {}, {"dim": 0}, {"out": "$0"}, {"dtype": 6}, [], {"x": "$0"}, {"generator": None}])
    graph["tensors"].append({**copy.deepcopy(source), "name": "torch"})
    node = {"op": "aten", "name": "torch", "target": target, "inputs": [source["name"]], "outputs": ["torch"]}
    graph["nodes"].append({**node, "args": args, "kwargs": kwargs})
    graph["outputs"] = ["torch"]


ATEN = [
    "aten::relu", "aten::relu_", "aten::add.Tensor", "aten::cat", "aten::from_file", "aten::ones", "aten::empty",
    "aten::full", "aten::zeros", "aten::repeat", "aten::resize_", "aten::as_strided", "aten::index_select",
    "aten::view", "aten::reshape", "aten::permute", "aten::nonzero", "aten::item", "aten::_local_scalar_dense",
    "aten::detach", "aten::rand_like", "aten::set_.source_Storage", "aten::sum", "aten::topk", "aten::gather",
    "aten::nothing", "aten::", "aten::__class__", "aten::name", "aten::relu.default.x", "aten::relu.__class__",
    "prim::print", "aten::softmax.int", "aten::linear", "aten::conv2d", "aten::expand", "aten::unfold",
    "aten::arange", "aten::linspace", "aten::eye", "aten::to.dtype", "aten::clone", "aten::tril_indices",
    "aten::max_pool2d", "aten::upsample_nearest2d", "aten::index.Tensor", "aten::embedding", "aten::new_full",
    "aten::pad", "aten::tile", "aten::one_hot", "aten::bincount", "aten::repeat_interleave.self_int",
]  # fmt: skip
