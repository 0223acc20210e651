"""Mutations of a parsed file that is a tree of objects, lists and arrays: TFLite's, as its schema unpacks it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tests.fuzz.mutations import TEXTS, Rng, hostile_float, hostile_int, pick

Place = tuple[Any, Any]  # a list with an index, or an object with an attribute


def places(value: Any) -> list[Place]:
    """Every place below ``value``; an array of numbers is one place."""
    if isinstance(value, list):
        keys: list[Any] = list(range(len(value)))
    elif hasattr(value, "__dict__"):
        keys = list(vars(value))
    else:
        return []
    return [p for key in keys for p in ((value, key), *places(_get(value, key)))]


def _get(parent: Any, key: Any) -> Any:
    return parent[key] if isinstance(parent, list) else getattr(parent, key)


def _set(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, list):
        parent[key] = value
    else:
        setattr(parent, key, value)


def mutate_tree(rng: Rng, tree: Any) -> None:
    """Changes one place; most types stay, so that the tree can be written again."""
    found = places(tree)
    parent, key = pick(rng, found)
    value = _get(parent, key)
    kind = rng.random()
    if isinstance(parent, list) and kind < 0.3:
        other = int(rng.integers(len(parent)))
        how = rng.integers(3)
        if how == 0:
            del parent[key]
        elif how == 1:
            parent.insert(other, copy.deepcopy(value))
        else:
            parent[key], parent[other] = parent[other], parent[key]
        return
    alike = [p for p in found if p[1] == key and type(_get(*p)) is type(value)]
    if kind < 0.5 and not isinstance(key, int) and alike:  # what another object has there
        _set(parent, key, copy.deepcopy(_get(*pick(rng, alike))))
    elif kind < 0.55:
        _set(parent, key, None)
    else:
        _set(parent, key, _hostile(rng, value))


def _hostile(rng: Rng, value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return not value
    if isinstance(value, (int, np.integer)):
        return hostile_int(rng, int(value))
    if isinstance(value, (float, np.floating)):
        return pick(rng, [hostile_float(rng, float(value)), float("nan"), float("inf")])
    if isinstance(value, (bytes, str)):
        return pick(rng, TEXTS).encode()
    if isinstance(value, np.ndarray):
        return _hostile_array(rng, value)
    if isinstance(value, list) and value and all(isinstance(v, (int, float)) for v in value):
        return _hostile_array(rng, np.array(value)).tolist()
    return value


def _hostile_array(rng: Rng, array: np.ndarray) -> np.ndarray:
    flat = array.ravel().copy()
    kind = rng.integers(6)
    if kind == 0 or not flat.size:
        return pick(rng, [flat[:0], np.resize(flat, flat.size + 1), np.zeros(7, array.dtype)])
    if kind == 1:
        return flat[: int(rng.integers(flat.size))]
    if kind == 2:
        return np.concatenate([flat, flat])
    if kind == 3:
        return flat[::-1].copy()
    at = int(rng.integers(flat.size))
    with np.errstate(all="ignore"):
        if flat.dtype.kind == "f":
            flat[at] = pick(rng, [0.0, -1.0, np.nan, np.inf, 1e30, 1e-38, 1e-45, float(flat[at]) * 1e6])
        else:
            bits = 8 * flat.itemsize
            wide = hostile_int(rng, int(flat[at])) % 2**bits
            flat[at] = np.array(wide, f"u{flat.itemsize}").view(flat.dtype)
    return flat
