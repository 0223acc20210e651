"""What can happen to bytes and to JSON, whatever they mean."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
HOSTILE = [
    0, 1, -1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, -127, -128, -129, 254, 255, 256, 641,
    1000, 2047, 2048, 2049, 4095, 4096, 4097, 32767, 32768, 65535, 65536, 65537, 2**20, 2**22, 2**24, 2**28 - 1, 2**28,
    2**28 + 1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**61, 2**62, 2**63 - 1,
    -(2**63), 2**63, 2**64 - 1, 2**64, 10**30,
]  # fmt: skip
HOSTILE_FLOATS = [
    0.0, -0.0, 0.5, 1.0, -1.0, 1e-30, 1e-31, 1e-38, 1e-45, 1e-300, 5e-324, 1e30, 1e31, 3e38, 3.4028235677973366e38, 1e39,
    1e308, -1e308, 2.0**-126, 2.0**-149, 2.0**-8, 2.0**-7, 0.00390625, 2.0**20, 2.0**99, 2.0**-99, 0.1,
]  # fmt: skip
TEXTS = [
    "",
    "x",
    "\0",
    "é" * 3,
    "a" * 10_000,
    "golden/0/in/x",
    "golden/x",
    "#c0",
    "$0",
    "../../x",
    "aten::relu",
    "%s%n",
]


def pick(rng: Rng, items: Any) -> Any:
    """One of a sequence, as it is."""
    return items[int(rng.integers(len(items)))]


def hostile_int(rng: Rng, value: int) -> int:
    """An extreme, or a neighbour of what stood there."""
    kind = rng.integers(4)
    if kind == 0:
        return int(pick(rng, HOSTILE))
    if kind == 1:
        return value + int(pick(rng, [-2, -1, 1, 2]))
    if kind == 2:
        return int(pick(rng, [value * 2, value // 2, -value, value * 64, value ^ 1, value + 2**31, value + 2**32]))
    return int(rng.integers(0, 300))


def hostile_float(rng: Rng, value: float) -> float:
    """An extreme, or a neighbour of what stood there, mostly an fp32 number."""
    kind = rng.integers(3)
    if kind == 0:
        return float(pick(rng, HOSTILE_FLOATS))
    with np.errstate(over="ignore", under="ignore"):
        factor = pick(rng, [0.5, 2.0, -1.0, 1e-6, 1e6, 1e-25, 1e25, 1.0 + 2**-23])
        changed = np.float32(value) * np.float32(factor)
        return float(changed) if np.isfinite(changed) else 3e38


def mutate_bytes(rng: Rng, data: bytes) -> bytes:
    """Bits flipped, cut short, sections swapped, doubled or removed, integers replaced by hostile ones."""
    out = bytearray(data)
    size = len(out)
    if size < 16:
        return bytes(out) + b"\0" * 8
    kind = rng.integers(8)
    head = size if rng.random() < 0.4 else min(size, 4096)  # where a format's structure lies
    if kind <= 2:
        for at in rng.integers(0, head, pick(rng, [1, 1, 2, 4, 16])):
            out[at] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        for at in rng.integers(0, head, pick(rng, [1, 2, 8])):
            out[at] = int(pick(rng, [0, 0xFF, 0x80, 0x7F, 0x20, 0x7B, int(rng.integers(256))]))
    elif kind == 4:
        del out[int(rng.integers(size)) :]
    elif kind == 5:
        width = int(pick(rng, [1, 2, 4, 8]))
        at = int(rng.integers(0, head - width)) // width * width
        out[at : at + width] = (int(pick(rng, HOSTILE)) % 2 ** (8 * width)).to_bytes(width, "little")
    else:
        a, b, c, d = sorted(int(v) for v in rng.integers(0, size, 4))
        how = rng.integers(4)
        if how == 0:
            out = out[:a] + out[c:d] + out[b:c] + out[a:b] + out[d:]
        elif how == 1:
            out = out[:b] + out[a:b] + out[b:]
        elif how == 2:
            del out[a:b]
        else:
            out += bytes(int(pick(rng, [1, 7, 8, 64, 4096])))
    return bytes(out)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, v in value.items():
            found += _paths(v, (*at, key))
    elif isinstance(value, list):
        for i, v in enumerate(value):
            found += _paths(v, (*at, i))
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [s for v in children for s in _strings(v)]


def mutate_json(rng: Rng, tree: Any) -> None:
    """Changes one place of a JSON object: its value, its type, its order, its presence."""
    path = pick(rng, _paths(tree))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    value = parent[key]
    kind = rng.integers(12)
    if kind == 0:
        parent[key] = pick(rng, [None, 0, -1, 1.5, "x", [], {}, True, [[]], copy.deepcopy(parent)])
    elif kind == 1 and isinstance(parent, list):
        del parent[key]
    elif kind == 1:
        parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(int(rng.integers(len(parent) + 1)), copy.deepcopy(value))
    elif kind == 3 and isinstance(parent, list):
        other = int(rng.integers(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif kind == 3 and isinstance(parent, dict):
        other = pick(rng, list(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int):
        parent[key] = hostile_int(rng, value)
    elif isinstance(value, float):
        parent[key] = hostile_float(rng, value)
    elif isinstance(value, str):
        parent[key] = pick(rng, TEXTS) if rng.random() < 0.2 else pick(rng, _strings(tree))
    elif isinstance(value, list):
        changes: list[Callable[[list[Any]], Any]] = [
            list.clear, list.reverse, lambda v: v.append(copy.deepcopy(pick(rng, v)) if v else 0),
            lambda v: v.extend(copy.deepcopy(v)), lambda v: v and v.pop(),
        ]  # fmt: skip
        pick(rng, changes)(value)
    elif isinstance(value, dict):
        value[pick(rng, ["surprise", "op", "name", "input"])] = pick(rng, [0, "x", None])
