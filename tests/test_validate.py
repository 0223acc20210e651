"""One broken rule a case; each is refused, with the operator's name and what is wrong."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from agent import graph as g
from agent.errors import ModelError
from agent.validate import Limits, validate

F = float(np.float32(0.1))


def conv_graph(**changes):
    """A valid convolution; ``changes`` replace fields of its node."""
    x, y = g.Tensor("x", (1, 8, 8, 3), "u8", F, 10), g.Tensor("y", (1, 8, 8, 4), "u8", F, 20)
    node = g.Conv2d("conv", "x", "y", "w", "b", "m", 0, 255, (1, 1), (1, 1, 1, 1))
    constants = {"w": np.ones((4, 3, 3, 3), np.int8), "b": np.zeros(4, np.int32), "m": np.full(4, F, np.float32)}
    return g.Graph((x, y), (msgspec.structs.replace(node, **changes),), ("x",), ("y",)), constants


def with_tensor(index: int, **changes):
    graph, constants = conv_graph()
    tensors = list(graph.tensors)
    tensors[index] = msgspec.structs.replace(tensors[index], **changes)
    return msgspec.structs.replace(graph, tensors=tuple(tensors)), constants


def with_constant(name: str, array):
    graph, constants = conv_graph()
    return graph, constants | {name: array}


def with_graph(**changes):
    graph, constants = conv_graph()
    return msgspec.structs.replace(graph, **changes), constants


def pool(**changes):
    x = g.Tensor("x", (1, 8, 8, 3), "u8", F, 10)
    y = g.Tensor("y", (1, 4, 4, 3), "u8", F, changes.pop("zero_point", 10))
    node = msgspec.structs.replace(g.MaxPool2d("pool", "x", "y", (2, 2), (2, 2)), **changes)
    return g.Graph((x, y), (node,), ("x",), ("y",)), {}


def norm(epsilon: float, scale: float, n: int = 4):
    scale = float(np.float32(scale))
    tensors = g.Tensor("x", (1, n), "u8", scale, 3), g.Tensor("y", (1, n), "u8", 0.5, 3)
    node = g.LayerNorm("norm", "x", "y", "gamma", "beta", epsilon, 0, 255)
    ones = np.ones(n, np.float32)
    return g.Graph(tensors, (node,), ("x",), ("y",)), {"gamma": ones, "beta": ones}


def aten(target: str):
    x, y = g.Tensor("x", (1, 4), "f32"), g.Tensor("y", (1, 4), "f32")
    return g.Graph((x, y), (g.Aten("n", target, ("x",), ("y",), msgspec.Raw(b'["$0"]')),), ("x",), ("y",)), {}


huge = np.full((4, 3, 3, 3), 127, np.int8)
CASES = {
    "unknown input": (conv_graph(input="z"), "no tensor 'z'"),
    "produced twice": (conv_graph(output="x"), "produced twice"),
    "read before produced": (conv_graph(input="y"), "before it is produced"),
    "no such constant": (conv_graph(weight="v"), "no constant 'v'"),
    "groups": (conv_graph(groups=2), "groups"),
    "stride": (conv_graph(stride=(0, 1)), "stride"),
    "output size": (conv_graph(stride=(2, 2)), "axis 1"),
    "padding": (conv_graph(padding=(-1, 0, 0, 0)), "padding"),
    "window too large": (conv_graph(dilation=(50, 50)), "larger than the padded map"),
    "clamp order": (conv_graph(lo=5, hi=4), "clamp"),
    "clamp range": (conv_graph(hi=256), "clamp"),
    "zero point": (with_tensor(0, zero_point=256), "zero point"),
    "scale zero": (with_tensor(0, scale=0.0), "scale"),
    "scale not fp32": (with_tensor(0, scale=0.1), "fp32"),
    "scale infinite": (with_tensor(0, scale=float("inf")), "scale"),
    "f32 with a scale": (with_tensor(0, dtype="f32"), "f32"),
    "bad extent": (with_tensor(0, shape=(1, 0, 8, 3)), "extent"),
    "too many elements": (with_tensor(0, shape=(1, 30000, 30000, 3)), "elements"),
    "weight dtype": (with_constant("w", np.ones((4, 3, 3, 3), np.int32)), "int32"),
    "weight zero point": (conv_graph(weight_zero_point=1), "zero point"),
    "weight shape": (with_constant("w", np.ones((4, 3, 3, 2), np.int8)), "shape"),
    "bias shape": (with_constant("b", np.zeros(3, np.int32)), "shape"),
    "multiplier zero": (with_constant("m", np.zeros(4, np.float32)), "multipliers"),
    "multiplier NaN": (with_constant("m", np.full(4, np.nan, np.float32)), "multipliers"),
    "overflow": ((conv_graph()[0], conv_graph()[1] | {"w": huge, "b": np.full(4, 2**31 - 1, np.int32)}), "overflow"),
    "two tensors of a name": (with_graph(tensors=(g.Tensor("x", (1,), "f32"),) * 2), "same name"),
    "two nodes of a name": (with_graph(nodes=conv_graph()[0].nodes * 2), "same name"),
    "no input": (with_graph(inputs=()), "input"),
    "an output of nothing": (with_graph(outputs=("z",)), "never produced"),
    "pool padding": (pool(padding=(2, 0, 0, 0), kernel=(2, 2)), "padding|axis"),
    "pool quantization": (pool(zero_point=11), "same dtype, scale"),
    "layer norm epsilon": (norm(1e-29, 5e29), "too small beside the input's scale"),
    "layer norm extent": (norm(1.0, 1.0, n=65_537), "65,536"),
    "a namespace that is not aten": (aten("prims::add"), "aten"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_broken_rule_is_refused_by_name(case: str) -> None:
    (graph, constants), expected = CASES[case]
    with pytest.raises(ModelError, match=expected):
        validate(graph, constants)


def test_the_valid_one_is_valid() -> None:
    validate(*conv_graph())
    validate(*pool())
    validate(*aten("aten::relu"))
    validate(*norm(1e-29, 1.0))


def test_the_overflow_bound_is_one_sided_and_tight() -> None:
    graph, constants = conv_graph()
    # v lies in -10..245, 27 weights of 127: the sum reaches 27 * 127 * 245 at most.
    most = 27 * 127 * 245
    validate(graph, constants | {"w": huge, "b": np.full(4, 2**31 - 1 - most, np.int32)})
    with pytest.raises(ModelError, match="overflow"):
        validate(graph, constants | {"w": huge, "b": np.full(4, 2**31 - most, np.int32)})


def test_limits_are_settings() -> None:
    with pytest.raises(ModelError, match="more than 1 tensors"):
        validate(*conv_graph(), Limits(tensors=1))
