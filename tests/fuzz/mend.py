"""Mends what follows from a change: shapes, constants, clamps and quantization that no longer fit.

A mutated stride is refused for the output's old shape, and a kernel never sees it; mended, it is a valid model at the
edge of the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.mutations import Rng

Arrays = dict[str, tuple[str, list[int], bytes]]
Json = dict[str, Any]
MOST = 1 << 24  # elements; beyond, a case is left as it is: the limits shall refuse it
_SIZE = {"U8": 1, "I8": 1, "I32": 4, "F32": 4}
_RANGE = {"u8": (0, 255), "s8": (-128, 127)}


def mend(rng: Rng, header: Json, arrays: Arrays) -> None:
    """Changes the graph and the arrays in place, as far as they can be understood."""
    graph = header["graph"] if isinstance(header.get("graph"), dict) else {}
    try:
        tensors = {t["name"]: t for t in graph["tensors"]}
        for t in tensors.values():
            _quantization(t)
        for node in graph["nodes"]:
            _node(rng, node, tensors, arrays)
        for name in [k for k in arrays if k.startswith("golden/")]:
            if rng.random() < 0.9:
                del arrays[name]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError):
        return  # too damaged


def _quantization(t: Json) -> None:
    if t["dtype"] not in _RANGE:
        t["scale"], t["zero_point"] = 0.0, 0
        return
    low, high = _RANGE[t["dtype"]]
    t["zero_point"] = min(max(int(t.get("zero_point", 0)), low), high)
    with np.errstate(over="ignore"):
        scale = float(np.float32(t.get("scale", 0.0)))
    t["scale"] = scale if 1e-30 < scale < 1e30 else 0.125


def _resized(arrays: Arrays, name: str, dtype: str, shape: list[int]) -> None:
    """The constant in another shape, its bytes repeated."""
    count = int(np.prod(shape)) * _SIZE[dtype]
    if not 0 < count <= MOST or name not in arrays:
        return
    _, _, data = arrays[name]
    if len(data) != count:
        data = (data * (count // max(1, len(data)) + 1))[:count]
    arrays[name] = (dtype, [int(n) for n in shape], data)


def _window(x: list[int], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> list[int]:
    return [(x[1 + i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(2)]  # fmt: skip


def _same(to: Json, of: Json) -> None:
    for key in ("dtype", "scale", "zero_point"):
        to[key] = of[key]


def _node(rng: Rng, node: Json, tensors: dict[str, Json], arrays: Arrays) -> None:
    op = node["op"]
    if op == "aten":
        return
    y = tensors[node["output"]]
    x = tensors[node["inputs"][0] if "inputs" in node else node["input"]] if op != "constant" else y
    rule: Callable[[Rng, Json, Json, Json, dict[str, Json], Arrays], list[int] | None] | None = _RULES.get(op)
    shape = rule(rng, node, x, y, tensors, arrays) if rule else x["shape"]
    if shape and all(isinstance(n, int) for n in shape) and 0 < int(np.prod([float(n) for n in shape])) <= MOST:
        y["shape"] = [int(n) for n in shape]
    if "lo" in node and y["dtype"] in _RANGE:
        low, high = _RANGE[y["dtype"]]
        node["lo"] = min(max(int(node["lo"]), low), high)
        node["hi"] = min(max(int(node["hi"]), node["lo"]), high)


def _conv(rng: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _, (_, kh, kw, _), _ = arrays[node["weight"]]
    if rng.random() < 0.2:
        kh, kw = (int(n) for n in rng.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33], 2))
    groups, oc, ic = node.get("groups", 1), y["shape"][3], x["shape"][3]
    _resized(arrays, node["weight"], "U8" if node.get("weight_zero_point") else "I8", [oc, kh, kw, ic // groups])
    _resized(arrays, node["bias"], "I32", [oc])
    _resized(arrays, node["multiplier"], "F32", [oc])
    defaults = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
    window = [node.get(k, v) for k, v in defaults.items()]
    return [x["shape"][0], *_window(x["shape"], [kh, kw], *window), oc]


def _linear(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    n, k = y["shape"][-1], x["shape"][-1]
    _resized(arrays, node["weight"], "U8" if node.get("weight_zero_point") else "I8", [n, k])
    _resized(arrays, node["bias"], "I32", [n])
    _resized(arrays, node["multiplier"], "F32", [n])
    return [*x["shape"][:-1], n]


def _pool(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    if node["op"] == "max_pool2d":
        _same(y, x)
    kernel, padding = node["kernel"], node.get("padding", [0] * 4)
    padding[:] = [min(p, kernel[i % 2] - 1) for i, p in enumerate(padding)]
    return [x["shape"][0], *_window(x["shape"], kernel, node["stride"], padding, node.get("dilation", [1, 1])),
            x["shape"][3]]  # fmt: skip


def _pair(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    other = tensors[node["inputs"][1]]
    gate = node["op"] == "mul" and other["shape"][1:3] == [1, 1]
    other["shape"] = [x["shape"][0], 1, 1, x["shape"][-1]] if gate else list(x["shape"])
    return list(x["shape"])


def _matmul(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    other, n, k = tensors[node["inputs"][1]], y["shape"][-1], x["shape"][-1]
    other["shape"] = [*x["shape"][:-2], *([n, k] if node.get("transpose_b") else [k, n])]
    return [*x["shape"][:-1], n]


def _concat(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    axis = node["axis"] = node["axis"] % len(x["shape"])
    parts = [tensors[name] for name in node["inputs"]]
    for part in parts:
        part["shape"] = [part["shape"][axis] if i == axis else n for i, n in enumerate(x["shape"])]
    if x["dtype"] == "f32":
        for part in (*parts, y):
            _same(part, x)
    return [sum(p["shape"][axis] for p in parts) if i == axis else n for i, n in enumerate(x["shape"])]


def _transpose(rng: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    rank = len(x["shape"])
    if sorted(node["axes"]) != list(range(rank)):
        node["axes"] = [int(a) for a in rng.permutation(rank)]
    _same(y, x)
    return [x["shape"][a] for a in node["axes"]]


def _slice(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _same(y, x)
    shape = []
    for axis, extent in enumerate(x["shape"]):
        begin = node["begin"][axis] = node["begin"][axis] % extent
        step = node["step"][axis] = node["step"][axis] or 1
        room = (extent - 1 - begin) // step + 1 if step > 0 else begin // -step + 1
        shape.append(min(room, max(1, y["shape"][axis])))
    return shape


def _expand(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _same(y, x)
    return [max(1, b) if a == 1 else a for a, b in zip(x["shape"], y["shape"], strict=True)]


def _pad(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _same(y, x)
    low, high = _RANGE[y["dtype"]]
    node["value"] = min(max(node["value"], low), high)
    for key in ("before", "after", "interior"):
        node[key] = [max(0, n) for n in node[key]]
    frame = zip(x["shape"], node["before"], node["after"], node["interior"], strict=True)
    return [n + before + after + (n - 1) * interior for n, before, after, interior in frame]


def _resize2d(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _same(y, x)
    for axis, name in ((1, node["rows"]), (2, node["columns"])):
        _resized(arrays, name, "I32", [y["shape"][axis], 3])
    return [x["shape"][0], *y["shape"][1:3], x["shape"][3]]


def _argmax(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    y["dtype"] = "s32"
    _quantization(y)
    return x["shape"][:-1] or [1]


def _constant(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    kinds = {"u8": "U8", "s8": "I8", "s32": "I32", "f32": "F32"}
    _resized(arrays, node["value"], kinds[y["dtype"]], y["shape"])
    return list(y["shape"])


def _reshape(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int] | None:
    _same(y, x)
    return None if np.prod(x["shape"]) == np.prod(y["shape"]) else list(x["shape"])


def _layer_norm(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    for name in (node["gamma"], node["beta"]):
        _resized(arrays, name, "F32", [x["shape"][-1]])
    return list(x["shape"])


def _table(_: Rng, node: Json, x: Json, y: Json, tensors: dict[str, Json], arrays: Arrays) -> list[int]:
    _resized(arrays, node["table"], "U8" if node["op"] == "lut" else "I32", [256])
    return list(x["shape"])


_RULES: dict[str, Callable[..., list[int] | None]] = {
    "conv2d": _conv, "linear": _linear, "matmul": _matmul, "max_pool2d": _pool, "avg_pool2d": _pool, "add": _pair,
    "mul": _pair, "concat": _concat, "transpose": _transpose, "slice": _slice, "expand": _expand, "pad": _pad,
    "resize2d": _resize2d, "argmax": _argmax, "constant": _constant, "reshape": _reshape, "layer_norm": _layer_norm,
    "lut": _table, "softmax": _table,
}  # fmt: skip
