"""Tiny ONNX files in the QDQ and the QOperator form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _File:
    """A graph in the making; every method gives the name of what it made."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], f"n{len(self.nodes)}", **attributes))
        return out

    def scale(self, value: float = 0.05) -> str:
        return self.constant(np.float32(value))

    def zero(self, value: int = 3, kind: Any = np.uint8) -> str:
        return self.constant(kind(value))

    def quantized(self, x: str, scale: float = 0.05, zero_point: int = 3) -> str:
        """Through QuantizeLinear and DequantizeLinear."""
        q = self.node("QuantizeLinear", x, self.scale(scale), self.zero(zero_point))
        return self.node("DequantizeLinear", q, self.scale(scale), self.zero(zero_point))

    def weight(self, *shape: int) -> str:
        q = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        return self.node("DequantizeLinear", q, self.scale(0.01), self.zero(0, np.int8))

    def bias(self, n: int) -> str:
        q = self.constant(self.rng.integers(-500, 500, n).astype(np.int32))
        return self.node("DequantizeLinear", q, self.scale(0.0005), self.zero(0, np.int32))

    def write(self, shape: tuple[int, ...], out: str) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        model = onnx.shape_inference.infer_shapes(model)
        data: bytes = model.SerializeToString()
        return data


def _network(seed: int) -> bytes:
    f = _File(seed)
    x = f.quantized("x")
    a = f.quantized(f.node("Relu", f.node("Conv", x, f.weight(4, 3, 3, 3), f.bias(4), pads=[1, 1, 1, 1])))
    b = f.quantized(f.node("Conv", a, f.weight(4, 1, 3, 3), f.bias(4), pads=[1, 1, 1, 1], group=4))
    s = f.quantized(f.node("Add", a, b))
    p = f.quantized(f.node("MaxPool", s, kernel_shape=[2, 2], strides=[2, 2]))
    c = f.quantized(f.node("Concat", p, p, axis=1))
    m = f.quantized(f.node("GlobalAveragePool", c))
    flat = f.quantized(f.node("Flatten", m))
    return f.write((1, 3, 6, 6), f.quantized(f.node("Gemm", flat, f.weight(5, 8), f.bias(5), transB=1)))


def _unary(op: str, **attributes: Any) -> bytes:
    f = _File(1)
    return f.write((1, 2, 4, 4), f.quantized(f.node(op, f.quantized("x"), **attributes)))


def _shaped(op: str, constant: list[int], **attributes: Any) -> bytes:
    f = _File(2)
    values = f.constant(np.array(constant, np.int64))
    return f.write((1, 2, 4, 4), f.quantized(f.node(op, f.quantized("x"), values, **attributes)))


def _qoperator() -> bytes:
    f = _File(3)
    x = f.node("QuantizeLinear", "x", f.scale(), f.zero())
    weight = f.constant(f.rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    bias = f.constant(f.rng.integers(-500, 500, 4).astype(np.int32))
    y = f.node("QLinearConv", x, f.scale(), f.zero(), weight, f.scale(0.01), f.zero(0, np.int8), f.scale(0.1),
               f.zero(9), bias)  # fmt: skip
    return f.write((1, 3, 5, 5), f.node("DequantizeLinear", y, f.scale(0.1), f.zero(9)))


def seeds() -> list[bytes]:
    """Every one is a valid file."""
    return [
        _network(0),
        _network(1),
        _qoperator(),
        *(_unary(op) for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softmax", "LeakyRelu", "Erf", "ReduceMean")),
        _unary("AveragePool", kernel_shape=[2, 2], strides=[1, 2], pads=[0, 1, 0, 1]),
        _unary("Transpose", perm=[0, 2, 3, 1]),
        _unary("Clip"),
        _unary("Flatten", axis=2),
        _unary("Split", axis=1),
        _shaped("Reshape", [1, 32]),
        _shaped("Unsqueeze", [0]),
        _shaped("Squeeze", [0]),
        _shaped("Expand", [2, 2, 4, 4]),
        _shaped("Tile", [1, 1, 2, 2]),
        _shaped("Pad", [0, 0, 1, 1, 0, 0, 1, 1]),
        _shaped("Gather", [1, 0], axis=1),
    ]
