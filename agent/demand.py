"""What a valid graph will ask of a device, bounded from above: bytes and operations, from its shapes alone.

A file of a few hundred bytes can describe maps of many gigabytes, or prepare one weight ten thousand times;
``agent.validate`` compares these figures with its ``Limits`` before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent import coverage
from agent import graph as g

_BYTES = {"u8": 1, "s8": 1, "s32": 4, "f32": 4}
_SLACK = 128  # of a tensor: alignment, and what a kernel may read beyond it


@dataclass(frozen=True)
class Demand:
    """activations: bytes of all tensors with the padding around them, as if none shared memory; weights: bytes of all
    weights and tables as kernels hold them; operations: multiply-accumulates, and one for each other element.

    Of an ``aten`` node, only its outputs and the products that ``agent.coverage`` knows are counted.
    """

    activations: int
    weights: int
    operations: int


def demand(graph: g.Graph, constants: Mapping[str, NDArray[np.generic]]) -> Demand:
    """Of a graph that keeps the rules of every operator."""
    tensors = {t.name: t for t in graph.tensors}
    halos = {t.name: [0, 0, 0, 0] for t in graph.tensors}  # the widest padding that a reader asks for
    weights = operations = 0
    for node in graph.nodes:
        if isinstance(node, g.Conv2d):
            halos[node.input] = [max(pair) for pair in zip(halos[node.input], node.padding, strict=True)]
        weights += _weights(node, tensors, constants)
        operations += _operations(node, tensors, constants)
    activations = sum(_activation(t, halos[t.name]) for t in graph.tensors)
    return Demand(activations, weights, operations)


def _activation(t: g.Tensor, halo: list[int]) -> int:
    top, left, bottom, right = halo
    n, h, w, c = (1,) * (4 - len(t.shape)) + t.shape if len(t.shape) <= 4 else (1, 1, 1, math.prod(t.shape))
    return n * (h + top + bottom) * (w + left + right) * c * _BYTES[t.dtype] + _SLACK


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _held(weight: NDArray[np.generic]) -> int:
    """Bytes that kernels hold for one weight: up to 16 bits, and the same of what s8 does not hold of a u8 one."""
    return 4 if weight.dtype == np.uint8 else 2


def _weights(node: g.Node, tensors: Mapping[str, g.Tensor], constants: Mapping[str, NDArray[np.generic]]) -> int:
    match node:
        case g.Conv2d():
            oc, kh, kw, per_group = (int(n) for n in constants[node.weight].shape)
            if node.groups == oc and per_group == 1:
                return _up(oc, 64) * (8 * (kh * kw + kh + 8) + 8) + _SLACK
            panels = node.groups * _up(oc // node.groups, 64)
            # 3x3 kernels may be transformed, to 36 words of 16 bits.
            factor = 8 if (kh, kw) == (3, 3) and node.groups == 1 else _held(constants[node.weight])
            return panels * (kh * kw * _up(per_group, 64) * factor + 8) + 2 * _SLACK
        case g.Linear():
            n, k = (int(d) for d in constants[node.weight].shape)
            return _up(n, 64) * (_up(k, 64) * _held(constants[node.weight]) + 8) + _SLACK
        case g.Matmul():
            return _up(tensors[node.inputs[1]].shape[-1], 64) * _up(tensors[node.inputs[1]].shape[-2], 64) * 2 + _SLACK
        case g.AvgPool2d():
            return 4 * (node.kernel[0] * node.kernel[1] + 1) + _SLACK
        case g.Concat():
            return 256 * len(node.inputs)
        case _:
            return sum(constants[name].nbytes for name in g.node_constants(node))


def _operations(node: g.Node, tensors: Mapping[str, g.Tensor], constants: Mapping[str, NDArray[np.generic]]) -> int:
    outputs = node.outputs if isinstance(node, g.Aten) else (node.output,)
    elements = sum(math.prod(tensors[name].shape) for name in outputs)
    if isinstance(node, (g.MaxPool2d, g.AvgPool2d)):
        return elements * math.prod(node.kernel)
    if isinstance(node, g.ArgMax):
        return math.prod(tensors[node.input].shape)
    return max(elements, coverage.macs(node, tensors, constants))
