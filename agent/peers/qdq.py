"""A graph as ONNX in QDQ form: u8 activations per tensor, s8 weights per channel, what the int8 paths of ONNX Runtime
and OpenVINO are made for. The quantized network is the very same: weights, biases, scales and zero points.

The model takes the u8 inputs in NCHW and gives the outputs of the graph. ``to_float_onnx`` writes the same network
without any quantization: float32 inputs and weights, the values that the integers stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent import graph as g
from agent.errors import BackendError
from agent.modelfile import Model
from agent.peers import forms

OPSET = 20
_TYPES = {"u8": TensorProto.UINT8, "s8": TensorProto.INT8, "f32": TensorProto.FLOAT}
_FUNCTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "gelu": ("Gelu", {}),
    "relu": ("Relu", {}),
}


def to_onnx(model: Model, loose: Collection[str] = ()) -> onnx.ModelProto:
    """loose: tensors that stay in float, see ``agent.peers.forms``.

    Raises ``BackendError`` with the node's name for an operator that has no QDQ form.
    """
    return _Export(model, frozenset(loose), in_float=False).run()


def to_float_onnx(model: Model) -> onnx.ModelProto:
    """The network without quantization. Raises as ``to_onnx`` does."""
    return _Export(model, frozenset(t.name for t in model.header.graph.tensors), in_float=True).run()


class _Export:
    def __init__(self, model: Model, loose: frozenset[str], in_float: bool) -> None:
        self.graph, self.constants, self.loose, self.in_float = model.header.graph, model.constants, loose, in_float
        self.tensors = {t.name: t for t in self.graph.tensors}
        self.floats: dict[str, str] = {}  # a loose tensor's name to that of its value
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            g.method_for(self, "_", node)(node)
        inputs = [self.value(name) for name in self.graph.inputs]
        for name in self.loose & set(self.graph.outputs):
            if self.tensors[name].dtype != "f32":
                self.emit("Identity", [self.floats[name]], name)
        outputs = [self.value(name) for name in self.graph.outputs]
        proto = helper.make_graph(self.nodes, "int8d", inputs, outputs, self.initializers)
        made = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)])
        made.ir_version = 9
        onnx.checker.check_model(made)
        return made

    def value(self, name: str) -> onnx.ValueInfoProto:
        t = self.tensors[name]
        kind = "f32" if name in self.loose else t.dtype
        return helper.make_tensor_value_info(name, _TYPES[kind], _nchw(t.shape))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(array.copy(), name))
        return name

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{kind}/{output}", **attributes))
        return output

    def quantization(self, user: str, t: g.Tensor) -> list[str]:
        zero = np.array(t.zero_point, np.int8 if t.dtype == "s8" else np.uint8)
        return [
            self.constant(f"{user}/scale", np.array(t.scale, np.float32)),
            self.constant(f"{user}/zero_point", zero),
        ]

    def dequantized(self, name: str, user: str) -> str:
        """The value in float; each reader has a node of its own, as the fusers want it."""
        if name in self.loose:
            return self.floats.get(name, name)
        output = f"{name}/dq/{user}"
        return self.emit("DequantizeLinear", [name, *self.quantization(output, self.tensors[name])], output)

    def quantized(self, value: str, name: str, lo: int | None = None, hi: int | None = None) -> None:
        """Clamps, where the container does not do it by itself, and quantizes."""
        t = self.tensors[name]
        clamp = forms.clamp(t, lo, hi, in_float=name in self.loose)
        if clamp == forms.RELU:
            value = self.emit("Relu", [value], f"{name}/relu")
        elif clamp is not None:
            names = [
                self.constant(f"{name}/{side}", np.array(bound, np.float32))
                for side, bound in zip(("min", "max"), clamp, strict=True)
            ]
            value = self.emit("Clip", [value, *names], f"{name}/clip")
        if name in self.loose:
            self.floats[name] = value
        else:
            self.emit("QuantizeLinear", [value, *self.quantization(f"{name}/q", t)], name)

    def weights(self, node: g.Conv2d | g.Linear, weight: NDArray[Any]) -> list[str]:
        scale = forms.weight_scale(node, self.tensors, self.constants)
        bias_scale = scale * np.float32(self.tensors[node.input].scale)
        if self.in_float:
            across = scale.reshape(-1, *[1] * (weight.ndim - 1))
            values = weight.astype(np.float32) - np.float32(node.weight_zero_point)
            return [
                self.constant(f"{node.output}/weight", values * across),
                self.constant(f"{node.output}/bias", self.constants[node.bias].astype(np.float32) * bias_scale),
            ]
        zero = np.full(len(scale), node.weight_zero_point, weight.dtype)
        dequantized = []
        for part, array, s, z in (
            ("weight", weight, scale, zero),
            ("bias", self.constants[node.bias], bias_scale, np.zeros(len(scale), np.int32)),
        ):
            name = f"{node.output}/{part}"
            inputs = [self.constant(f"{name}/{k}", v) for k, v in (("q", array), ("scale", s), ("zero_point", z))]
            dequantized.append(self.emit("DequantizeLinear", inputs, name, axis=0))
        return dequantized

    def _conv2d(self, node: g.Conv2d) -> None:
        weight = self.constants[node.weight].transpose(0, 3, 1, 2)
        y = self.emit(
            "Conv", [self.dequantized(node.input, node.name), *self.weights(node, weight)], f"{node.output}/float",
            kernel_shape=weight.shape[2:], strides=node.stride, pads=node.padding, dilations=node.dilation,
            group=node.groups,
        )  # fmt: skip
        self.quantized(y, node.output, node.lo, node.hi)

    def _linear(self, node: g.Linear) -> None:
        if len(self.tensors[node.input].shape) != 2:
            raise BackendError(f"node '{node.name}': only 2-D linear layers are handed to peers")
        inputs = [self.dequantized(node.input, node.name), *self.weights(node, self.constants[node.weight])]
        self.quantized(self.emit("Gemm", inputs, f"{node.output}/float", transB=1), node.output, node.lo, node.hi)

    def _max_pool2d(self, node: g.MaxPool2d) -> None:
        y = self.emit(
            "MaxPool", [self.dequantized(node.input, node.name)], f"{node.output}/float", kernel_shape=node.kernel,
            strides=node.stride, pads=node.padding, dilations=node.dilation,
        )  # fmt: skip
        self.quantized(y, node.output)

    def _avg_pool2d(self, node: g.AvgPool2d) -> None:
        x = self.dequantized(node.input, node.name)
        name = f"{node.output}/float"
        if node.kernel == self.tensors[node.input].shape[1:3] and not any(node.padding):
            y = self.emit("GlobalAveragePool", [x], name)
        else:
            y = self.emit(
                "AveragePool", [x], name, kernel_shape=node.kernel, strides=node.stride, pads=node.padding,
                count_include_pad=int(node.count_include_pad),
            )  # fmt: skip
        self.quantized(y, node.output, node.lo, node.hi)

    def _add(self, node: g.Add) -> None:
        inputs = [self.dequantized(name, f"{node.name}/{i}") for i, name in enumerate(node.inputs)]
        kind = "Sub" if node.subtract else "Add"
        self.quantized(self.emit(kind, inputs, f"{node.output}/float"), node.output, node.lo, node.hi)

    def _mul(self, node: g.Mul) -> None:
        inputs = [self.dequantized(name, f"{node.name}/{i}") for i, name in enumerate(node.inputs)]
        self.quantized(self.emit("Mul", inputs, f"{node.output}/float"), node.output, node.lo, node.hi)

    def _lut(self, node: g.Lut) -> None:
        x = self.dequantized(node.input, node.name)
        if node.function == "silu":
            gate = self.emit("Sigmoid", [x], f"{node.output}/gate")
            y = self.emit("Mul", [x, gate], f"{node.output}/float")
        elif node.function in _FUNCTIONS:
            kind, attributes = _FUNCTIONS[node.function]
            y = self.emit(kind, [x], f"{node.output}/float", **attributes)
        else:
            raise BackendError(f"node '{node.name}': the function '{node.function}' of a table has no ONNX form here")
        self.quantized(y, node.output)

    def _concat(self, node: g.Concat) -> None:
        axis = forms.nchw_axis(node.axis, len(self.tensors[node.output].shape))
        inputs = [self.dequantized(name, f"{node.name}/{i}") for i, name in enumerate(node.inputs)]
        self.quantized(self.emit("Concat", inputs, f"{node.output}/float", axis=axis), node.output)

    def _reshape(self, node: g.Reshape) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        value = self.dequantized(node.input, node.name)
        if len(x.shape) == 4 and x.shape[1] * x.shape[2] > 1:
            value = self.emit("Transpose", [value], f"{node.output}/nhwc", perm=(0, 2, 3, 1))
        shape = self.constant(f"{node.output}/shape", np.array(_nchw(y.shape), np.int64))
        self.quantized(self.emit("Reshape", [value, shape], f"{node.output}/float"), node.output)

    def _quantize(self, node: g.Quantize) -> None:
        self.quantized(node.input, node.output)

    def _dequantize(self, node: g.Dequantize) -> None:
        if node.input in self.loose:
            self.floats[node.output] = self.emit("Identity", [self.floats[node.input]], node.output)
            return
        t = self.tensors[node.input]
        self.emit("DequantizeLinear", [node.input, *self.quantization(f"{node.output}/dq", t)], node.output)

    def _softmax(self, node: g.Softmax) -> None:
        self.emit("Softmax", [self.dequantized(node.input, node.name)], node.output, axis=-1)

    def _aten(self, node: g.Aten) -> None:
        raise BackendError(f"node '{node.name}': {node.target} has no ONNX form here")


def _nchw(shape: tuple[int, ...]) -> list[int]:
    return [shape[0], shape[3], shape[1], shape[2]] if len(shape) == 4 else list(shape)
