"""What the exports to peers share: which quantizations a peer's own road leaves out, weights' scales, clamps.

Two forms of one network, with the same weights and scales:

- ``same``: every activation is quantized where the graph says so. ONNX Runtime's and TFLite's own quantizers do this.
- ``fused``: what a convolution hands to a single addition or unary function stays in float between the two. The
  quantizers of OpenVINO (NNCF) and of torch's x86 road do this, so that both run as one kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from agent import arithmetic
from agent import graph as g
from agent.errors import BackendError
from agent.validate import node_inputs

RELU: Literal["relu"] = "relu"
Form = Literal["same", "fused"]
MEANING: Mapping[Form, str] = {
    "same": "quantized everywhere",
    "fused": "float from a convolution to its sum or function",
}


def loose_tensors(graph: g.Graph, form: Form) -> frozenset[str]:
    """The tensors that are not quantized in this form."""
    if form == "same":
        return frozenset()
    made_by = {n.output: n for n in graph.nodes if isinstance(n, g.Conv2d | g.Linear)}
    readers = Counter(name for n in graph.nodes for name in node_inputs(n))
    readers.update(graph.outputs)
    loose: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, g.Add | g.Lut):
            for name in node_inputs(node):
                if name in made_by and readers[name] == 1:
                    loose.add(name)
                    break  # an addition is fused with one of its convolutions
    return frozenset(loose)


def clamp(
    t: g.Tensor, lo: int | None, hi: int | None, in_float: bool = False
) -> Literal["relu"] | tuple[float, float] | None:
    """The clamp of an output as a float operator: ``RELU``, (least, greatest), or None where the container does it.

    in_float: there is no container, so its own zero counts as a ReLU.
    """
    if lo is None or hi is None:
        return None
    low, high = arithmetic.container_range(t)
    if lo == t.zero_point and hi == high and (lo > low or in_float):
        return RELU
    if lo <= low and hi >= high:
        return None
    return (lo - t.zero_point) * t.scale, (hi - t.zero_point) * t.scale


def weight_scale(
    node: g.Conv2d | g.Linear, tensors: Mapping[str, g.Tensor], constants: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """f32 [oc]: the weights' scale per channel, from the multiplier: M = sx * sw / sy."""
    multiplier = constants[node.multiplier].astype(np.float64)
    scale = multiplier * tensors[node.output].scale / tensors[node.input].scale
    return cast(NDArray[np.float32], scale.astype(np.float32))


def symmetric_weight(node: g.Conv2d | g.Linear, constants: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
    """The weights as s8 without a zero point, of the constant's shape.

    Raises ``BackendError`` where u8 weights less their zero point leave s8.
    """
    weight = constants[node.weight]
    if weight.dtype == np.int8:
        return cast(NDArray[np.int8], weight)
    whole = weight.astype(np.int16) - np.int16(node.weight_zero_point)
    held = whole.clip(-128, 127).astype(np.int8)
    if (held != whole).any():
        raise BackendError(
            f"node '{node.name}': this peer takes s8 weights, and u8 ones less their zero point "
            f"{node.weight_zero_point} reach {whole.min()}..{whole.max()}"
        )
    return held


def nchw_axis(axis: int, rank: int) -> int:
    """An axis of an NHWC tensor, where it lies in NCHW."""
    return (0, 2, 3, 1)[axis] if rank == 4 else axis
