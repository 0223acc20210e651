"""Each ONNX operator beside ONNX Runtime, in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from tests.onnx_file import X, f32, ints, network, same_as_runtime

THREE = {"kernel_shape": (3, 3)}
AROUND = (1, 1, 1, 1)
# name: nodes from "x" to "y", constants, opset, shape of x
SINGLE: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], int, Sequence[int]]] = {
    "conv": ("Conv", {"pads": (1, 0, 1, 0), "strides": (2, 1)}, {"w": f32(6, 4, 3, 3), "b": f32(6)}, 11, X),
    "conv grouped": ("Conv", {"group": 2, "dilations": (1, 2)}, {"w": f32(6, 2, 2, 3)}, 20, X),
    "conv asymmetric": ("Conv", {"pads": (0, 1, 1, 0)}, {"w": f32(6, 4, 3, 3)}, 20, X),
    "conv same upper": ("Conv", {"auto_pad": "SAME_UPPER", "strides": (2, 2)}, {"w": f32(6, 4, 3, 3)}, 20, X),
    "conv same lower": ("Conv", {"auto_pad": "SAME_LOWER", "strides": (2, 2)}, {"w": f32(6, 4, 3, 3)}, 20, X),
    "conv 1-d": ("Conv", {"pads": (1, 1)}, {"w": f32(6, 4, 3)}, 20, (1, 4, 9)),
    "conv transpose": ("ConvTranspose", {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
                       {"w": f32(4, 6, 3, 3), "b": f32(6)}, 20, X),
    "conv transpose asymmetric": ("ConvTranspose", {"strides": (2, 2), "pads": (0, 1, 1, 0)}, {"w": f32(4, 6, 3, 3)},
                                  20, X),
    "conv transpose same": ("ConvTranspose", {"strides": (2, 2), "auto_pad": "SAME_UPPER"}, {"w": f32(4, 6, 3, 3)},
                            20, X),
    "max pool": ("MaxPool", THREE | {"strides": (2, 2), "pads": AROUND, "ceil_mode": 1}, {}, 20, X),
    "max pool asymmetric": ("MaxPool", {"kernel_shape": (2, 2), "pads": (0, 0, 1, 1)}, {}, 20, X),
    "average pool": ("AveragePool", THREE | {"pads": AROUND}, {}, 20, X),
    "average pool padded": ("AveragePool", THREE | {"pads": AROUND, "count_include_pad": 1}, {}, 20, X),
    "average pool same": ("AveragePool", THREE | {"auto_pad": "SAME_UPPER", "strides": (2, 2)}, {}, 20, X),
    "global average pool": ("GlobalAveragePool", {}, {}, 20, X),
    "global max pool": ("GlobalMaxPool", {}, {}, 20, X),
    "gemm": ("Gemm", {}, {"w": f32(5, 3), "b": f32(3)}, 20, (2, 5)),
    "gemm transposed": ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, {"w": f32(3, 5), "b": f32(3)}, 20, (2, 5)),
    "matmul": ("MatMul", {}, {"w": f32(8, 3)}, 20, X),
    "einsum": ("Einsum", {"equation": "bchw,cdw->bdch"}, {"w": f32(4, 5, 8)}, 20, X),
    "add": ("Add", {}, {"w": f32(4, 1, 1)}, 20, X),
    "subtract": ("Sub", {}, {"w": np.float32(0.5)}, 20, X),
    "multiply": ("Mul", {}, {"w": f32(8)}, 20, X),
    "divide": ("Div", {}, {"w": np.float32(3)}, 20, X),
    "power": ("Pow", {}, {"w": np.float32(2)}, 20, X),
    "minimum": ("Min", {}, {"w": f32(8)}, 20, X),
    "maximum": ("Max", {}, {"w": f32(8)}, 20, X),
    "leaky relu": ("LeakyRelu", {"alpha": 0.2}, {}, 20, X),
    "prelu": ("PRelu", {}, {"w": np.abs(f32(4, 1, 1))}, 20, X),
    "elu": ("Elu", {}, {}, 20, X),
    "clip": ("Clip", {}, {"w": np.float32(-0.5), "b": np.float32(0.7)}, 20, X),
    "hard sigmoid": ("HardSigmoid", {}, {}, 20, X),
    "hard sigmoid, torch's": ("HardSigmoid", {"alpha": 1 / 6}, {}, 20, X),
    "gelu": ("Gelu", {}, {}, 20, X),
    "gelu by tanh": ("Gelu", {"approximate": "tanh"}, {}, 20, X),
    "softmax": ("Softmax", {}, {}, 20, X),
    "softmax of all axes": ("Softmax", {"axis": 1}, {}, 11, X),
    "log softmax": ("LogSoftmax", {"axis": 1}, {}, 20, X),
    "batch norm": ("BatchNormalization", {}, {k: np.abs(f32(4)) + 0.1 for k in "abcd"}, 20, X),
    "layer norm": ("LayerNormalization", {}, {"w": f32(8), "b": f32(8)}, 20, X),
    "instance norm": ("InstanceNormalization", {}, {"w": f32(4), "b": f32(4)}, 20, X),
    "group norm": ("GroupNormalization", {"num_groups": 2}, {"w": f32(4), "b": f32(4)}, 21, X),
    "mean": ("ReduceMean", {"axes": (2, 3), "keepdims": 0}, {}, 13, X),
    "mean of axes": ("ReduceMean", {}, {"w": ints(-1, 1)}, 20, X),
    "sum": ("ReduceSum", {}, {"w": ints(2)}, 20, X),
    "largest": ("ReduceMax", {"keepdims": 0}, {"w": ints(2)}, 20, X),
    "flatten": ("Flatten", {}, {}, 20, X),
    "flatten all": ("Flatten", {"axis": 3}, {}, 20, X),
    "reshape": ("Reshape", {}, {"w": ints(0, -1, 2, 4)}, 20, X),
    "squeeze": ("Squeeze", {}, {"w": ints(0)}, 20, X),
    "unsqueeze": ("Unsqueeze", {}, {"w": ints(1, -1)}, 20, X),
    "transpose": ("Transpose", {"perm": (0, 3, 1, 2)}, {}, 20, X),
    "slice": ("Slice", {}, {"w": ints(1, -1), "b": ints(2**62, -(2**62)), "c": ints(2, 3), "d": ints(2, -3)}, 20, X),
    "gather one": ("Gather", {"axis": 2}, {"w": np.int64(-2)}, 20, X),
    "gather": ("Gather", {"axis": 1}, {"w": ints(3, 0, 0).reshape(3, 1)}, 20, X),
    "pad": ("Pad", {}, {"w": ints(0, 0, 1, 2, 0, 0, 0, 1), "b": np.float32(2)}, 20, X),
    "pad reflected": ("Pad", {"mode": "reflect"}, {"w": ints(0, 0, 1, 2, 0, 0, 0, 1)}, 20, X),
    "pad edge": ("Pad", {"mode": "edge"}, {"w": ints(0, 0, 1, 2, 0, 0, 0, 1)}, 20, X),
    "expand": ("Expand", {}, {"w": ints(2, 4, 6, 8)}, 20, X),
    "tile": ("Tile", {}, {"w": ints(1, 2, 1, 1)}, 20, X),
    "depth to space": ("DepthToSpace", {"blocksize": 2}, {}, 20, X),
    "depth to space, by rows": ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, {}, 20, X),
    "space to depth": ("SpaceToDepth", {"blocksize": 2}, {}, 20, X),
    "argmax": ("ArgMax", {"axis": 1, "keepdims": 0}, {}, 20, X),
} | {
    kind.lower(): (kind, {}, {}, 20, X)
    for kind in ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Neg", "Abs", "Reciprocal", "HardSwish", "Mish", "Softplus",
                 "Floor", "Round", "Identity", "Dropout")
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_means_what_it_means_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    kind, attributes, constants, opset, shape = SINGLE[name]
    model = network([(kind, ["x", *constants], ["y"], attributes)], {"x": shape}, ["y"], constants, opset)
    same_as_runtime(model, {"x": f32(*shape)}, tmp_path)


RESIZES = [
    ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "align_corners", "ceil"), ("linear", "half_pixel", ""), ("linear", "pytorch_half_pixel", ""),
    ("linear", "align_corners", ""), ("linear", "asymmetric", ""),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "where", "nearest"), RESIZES)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(mode: str, where: str, nearest: str, by: str, tmp_path: Path) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": where} | (
        {"nearest_mode": nearest} if nearest else {}
    )
    names = ["x", "", "by"] if by == "scales" else ["x", "", "", "by"]
    value = np.float32([1, 1, 1.5, 2]) if by == "scales" else ints(1, 4, 4, 13)
    model = network([("Resize", names, ["y"], attributes)], {"x": X}, ["y"], {"by": value})
    same_as_runtime(model, {"x": f32(*X)}, tmp_path)


def test_split_and_concat(tmp_path: Path) -> None:
    nodes = [
        ("Split", ["x"], ["a", "b", "c"], {"axis": 3, "num_outputs": 3}),
        ("Concat", ["c", "a"], ["y"], {"axis": 3}),
    ]
    same_as_runtime(network(nodes, {"x": X}, ["y", "b"]), {"x": f32(*X)}, tmp_path)


def test_shapes_are_computed_when_imported(tmp_path: Path) -> None:
    nodes = [
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "two"], ["h"], {}), ("Unsqueeze", ["h", "zero"], ["h1"], {}),
        ("Concat", ["one", "h1", "rest"], ["to"], {"axis": 0}), ("Reshape", ["x", "to"], ["r"], {}),
        ("ConstantOfShape", ["h1"], ["z"], {}), ("Cast", ["h"], ["f"], {"to": 1}), ("Equal", ["h", "two"], ["e"], {}),
        ("Where", ["e", "f", "half"], ["w"], {}), ("Mul", ["r", "w"], ["m"], {}),
        ("Range", ["begin", "h", "step"], ["i"], {}), ("Cast", ["i"], ["k"], {"to": 1}),
        ("Add", ["k", "z"], ["kz"], {}), ("Unsqueeze", ["kz", "last"], ["kzu"], {}), ("Add", ["m", "kzu"], ["y"], {}),
    ]  # fmt: skip
    constants = {"two": np.int64(2), "zero": ints(0), "one": ints(1), "rest": ints(-1), "half": np.float32(0.5),
                 "begin": np.int64(0), "step": np.int64(1), "last": ints(1)}  # fmt: skip
    model = network(nodes, {"x": X}, ["y"], constants)
    module = same_as_runtime(model, {"x": f32(*X)}, tmp_path)
    assert {str(n.target) for n in module.graph.nodes if n.op == "call_function"} == {
        "aten.reshape.default", "aten.mul.Tensor", "aten.add.Tensor"
    }  # fmt: skip


def test_functions_that_exporters_write_out_are_put_together(tmp_path: Path) -> None:
    nodes = [
        ("Sigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["silu"], {}),
        ("Div", ["silu", "root"], ["d"], {}), ("Erf", ["d"], ["e"], {}), ("Add", ["e", "one"], ["p"], {}),
        ("Mul", ["silu", "p"], ["q"], {}), ("Mul", ["q", "half"], ["gelu"], {}),
        ("ReduceMean", ["gelu"], ["m"], {"axes": (-1,)}), ("Sub", ["gelu", "m"], ["c"], {}),
        ("Pow", ["c", "two"], ["c2"], {}), ("ReduceMean", ["c2"], ["v"], {"axes": (-1,)}),
        ("Add", ["v", "eps"], ["ve"], {}), ("Sqrt", ["ve"], ["r"], {}), ("Div", ["c", "r"], ["n"], {}),
        ("Mul", ["n", "g"], ["ng"], {}), ("Add", ["ng", "b"], ["norm"], {}),
        ("MatMul", ["norm", "w"], ["mm"], {}), ("Add", ["mm", "bias"], ["y"], {}),
    ]  # fmt: skip
    constants = {
        "root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "two": np.float32(2),
        "eps": np.float32(1e-5), "g": f32(8), "b": f32(8), "w": f32(8, 3), "bias": f32(3),
    }  # fmt: skip
    module = same_as_runtime(network(nodes, {"x": (1, 5, 8)}, ["y"], constants, 13), {"x": f32(1, 5, 8)}, tmp_path)
    called = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
    assert called == ["aten.silu.default", "aten.gelu.default", "aten.layer_norm.default", "aten.linear.default"]
