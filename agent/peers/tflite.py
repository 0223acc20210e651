"""A graph as a TFLite flatbuffer: int8 activations per tensor, int8 weights per channel, as TFLite's own quantizer
writes them. NHWC is native to both; a u8 activation becomes int8 by taking 128 from its bytes and its zero point.

Padding that TFLite's SAME does not give is a PAD before the operator, as its converters write it. The outputs are those
of the graph, quantized ones as int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent import arithmetic
from agent import graph as g
from agent.errors import BackendError
from agent.modelfile import Model
from agent.peers import forms

Op, Type, Activation = schema.BuiltinOperator, schema.TensorType, schema.ActivationFunctionType
_TYPES = {"int8": Type.INT8, "int32": Type.INT32, "float32": Type.FLOAT32}
_FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}  # what TFLite's kernels demand of their outputs


def to_tflite(model: Model) -> bytes:
    """Raises ``BackendError`` with the node's name for an operator that has no form here."""
    return _Export(model).run()


class _Export:
    def __init__(self, model: Model) -> None:
        self.graph, self.constants = model.header.graph, model.constants
        self.described = {t.name: t for t in self.graph.tensors}
        self.buffers = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.indices: dict[str, int] = {}
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def run(self) -> bytes:
        for name in self.graph.inputs:
            self.activation(name)
        for node in self.graph.nodes:
            g.method_for(self, "_", node)(node)
        sub = schema.SubGraphT()
        sub.tensors, sub.operators = self.tensors, self.operators
        sub.inputs = [self.indices[name] for name in self.graph.inputs]
        sub.outputs = [self.indices[name] for name in self.graph.outputs]
        made = schema.ModelT()
        made.version, made.subgraphs, made.buffers = 3, [sub], self.buffers
        made.operatorCodes = [self.code(code) for code in self.codes]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(made.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def code(self, builtin: int) -> Any:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        return code

    def tensor(
        self, name: str, shape: Sequence[int], kind: int, scale: Any = None, zero_point: Any = 0, axis: int = 0,
        buffer: int = 0,
    ) -> int:  # fmt: skip
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = name, [*shape], kind, buffer
        if scale is not None:
            q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.float32(scale))
            q.zeroPoint = np.broadcast_to(np.int64(zero_point), q.scale.shape).copy()
            q.quantizedDimension = axis
            t.quantization = q
        self.tensors.append(t)
        return len(self.tensors) - 1

    def constant(self, name: str, array: NDArray[Any], scale: Any = None, zero_point: int = 0, axis: int = 0) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.buffers.append(buffer)
        kind = _TYPES[array.dtype.name]
        return self.tensor(name, array.shape, kind, scale, zero_point, axis, len(self.buffers) - 1)

    def activation(self, name: str) -> int:
        if name not in self.indices:
            t = self.described[name]
            if t.dtype == "f32":
                self.indices[name] = self.tensor(name, t.shape, Type.FLOAT32)
            else:
                self.indices[name] = self.tensor(name, t.shape, Type.INT8, t.scale, signed_zero_point(t))
        return self.indices[name]

    def emit(self, builtin: int, inputs: Sequence[int], output: int, kind: str = "", **fields: Any) -> int:
        """kind: the name of the operator's options in the schema; fields: theirs, by the schema's names."""
        if builtin not in self.codes:
            self.codes.append(builtin)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = self.codes.index(builtin), [*inputs], [output]
        if kind:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            op.builtinOptions = getattr(schema, kind + "T")()
            for field, value in fields.items():
                assert hasattr(op.builtinOptions, field)
                setattr(op.builtinOptions, field, value)
        self.operators.append(op)
        return output

    def fused(self, node: g.Conv2d | g.Linear | g.Add | g.Mul) -> int:
        """The clamp of a node as TFLite's fused activation."""
        t = self.described[node.output]
        clamp = forms.clamp(t, node.lo, node.hi)
        if clamp is None:
            return int(Activation.NONE)
        if clamp == forms.RELU:
            return int(Activation.RELU)
        if node.lo == t.zero_point and node.hi == t.zero_point + np.rint(6 / t.scale):
            return int(Activation.RELU6)
        raise BackendError(f"node '{node.name}': a clamp to {clamp[0]:.3g}..{clamp[1]:.3g} has no TFLite form here")

    def padded(self, node: g.Conv2d | g.MaxPool2d, kernel: tuple[int, int]) -> tuple[int, int]:
        """The input, padded where SAME would not do it; and the padding of the operator."""
        source = self.described[node.input]
        x = self.activation(node.input)
        if not any(node.padding):
            return x, int(schema.Padding.VALID)
        same: list[int] = [0, 0, 0, 0]
        for i in (0, 1):
            size, stride = source.shape[1 + i], node.stride[i]
            total = max((-(-size // stride) - 1) * stride + node.dilation[i] * (kernel[i] - 1) + 1 - size, 0)
            same[i], same[i + 2] = total // 2, total - total // 2
        if tuple(same) == node.padding:
            return x, int(schema.Padding.SAME)
        top, left, bottom, right = node.padding
        around = np.array([(0, 0), (top, bottom), (left, right), (0, 0)], np.int32)
        n, h, w, c = source.shape
        y = self.tensor(f"{node.output}/padded", (n, h + top + bottom, w + left + right, c), Type.INT8,
                        source.scale, signed_zero_point(source))  # fmt: skip
        inputs = [x, self.constant(f"{node.output}/padding", around)]
        if isinstance(node, g.MaxPool2d) and signed_zero_point(source) != -128:  # PAD would write the zero point
            least = np.array([-128], np.int8)
            inputs.append(self.constant(f"{node.output}/least", least, source.scale, signed_zero_point(source)))
            self.emit(Op.PADV2, inputs, y, "PadV2Options")
        else:
            self.emit(Op.PAD, inputs, y, "PadOptions")
        return y, int(schema.Padding.VALID)

    def weights(self, node: g.Conv2d | g.Linear, weight: NDArray[Any], axis: int) -> list[int]:
        scale = forms.weight_scale(node, self.described, self.constants)
        bias_scale = scale * np.float32(self.described[node.input].scale)
        return [
            self.constant(f"{node.output}/weight", weight, scale, 0, axis),
            self.constant(f"{node.output}/bias", self.constants[node.bias], bias_scale),
        ]

    def _conv2d(self, node: g.Conv2d) -> None:
        weight = forms.symmetric_weight(node, self.constants)
        x, padding = self.padded(node, weight.shape[1:3])
        common = {
            "padding": padding, "strideH": node.stride[0], "strideW": node.stride[1],
            "dilationHFactor": node.dilation[0], "dilationWFactor": node.dilation[1],
            "fusedActivationFunction": self.fused(node),
        }  # fmt: skip
        y = self.activation(node.output)
        if node.groups > 1 and node.groups == weight.shape[0] and weight.shape[3] == 1:
            inputs = [x, *self.weights(node, weight.transpose(3, 1, 2, 0), 3)]
            self.emit(Op.DEPTHWISE_CONV_2D, inputs, y, "DepthwiseConv2DOptions", depthMultiplier=1, **common)
        else:
            self.emit(Op.CONV_2D, [x, *self.weights(node, weight, 0)], y, "Conv2DOptions", **common)

    def _linear(self, node: g.Linear) -> None:
        inputs = [self.activation(node.input), *self.weights(node, forms.symmetric_weight(node, self.constants), 0)]
        keep = len(self.described[node.input].shape) > 2
        self.emit(Op.FULLY_CONNECTED, inputs, self.activation(node.output), "FullyConnectedOptions",
                  fusedActivationFunction=self.fused(node), keepNumDims=keep)  # fmt: skip

    def _max_pool2d(self, node: g.MaxPool2d) -> None:
        if node.dilation != (1, 1):
            raise BackendError(f"node '{node.name}': a dilated pool has no TFLite form")
        x, padding = self.padded(node, node.kernel)
        self.emit(Op.MAX_POOL_2D, [x], self.activation(node.output), "Pool2DOptions", padding=padding,
                  strideH=node.stride[0], strideW=node.stride[1], filterHeight=node.kernel[0],
                  filterWidth=node.kernel[1])  # fmt: skip

    def _avg_pool2d(self, node: g.AvgPool2d) -> None:
        source = self.described[node.input]
        x, y = self.activation(node.input), self.activation(node.output)
        if any(node.padding):
            raise BackendError(f"node '{node.name}': a padded average pool has no TFLite form here")
        if node.kernel == source.shape[1:3]:
            axes = self.constant(f"{node.output}/axes", np.array([1, 2], np.int32))
            self.emit(Op.MEAN, [x, axes], y, "ReducerOptions", keepDims=True)
            return
        same = self.tensor(f"{node.output}/pooled", self.described[node.output].shape, Type.INT8, source.scale,
                           signed_zero_point(source))  # fmt: skip
        self.emit(Op.AVERAGE_POOL_2D, [x], same, "Pool2DOptions", padding=schema.Padding.VALID,
                  strideH=node.stride[0], strideW=node.stride[1], filterHeight=node.kernel[0],
                  filterWidth=node.kernel[1])  # fmt: skip
        self.emit(Op.QUANTIZE, [same], y, "QuantizeOptions")

    def _add(self, node: g.Add) -> None:
        inputs = [self.activation(name) for name in node.inputs]
        builtin, kind = (Op.SUB, "SubOptions") if node.subtract else (Op.ADD, "AddOptions")
        self.emit(builtin, inputs, self.activation(node.output), kind, fusedActivationFunction=self.fused(node))

    def _mul(self, node: g.Mul) -> None:
        inputs = [self.activation(name) for name in node.inputs]
        self.emit(Op.MUL, inputs, self.activation(node.output), "MulOptions", fusedActivationFunction=self.fused(node))

    def _lut(self, node: g.Lut) -> None:
        x, y = self.activation(node.input), self.activation(node.output)
        out = self.described[node.output]
        match node.function:
            case "hardswish":
                self.emit(Op.HARD_SWISH, [x], y, "HardSwishOptions")
            case "gelu":
                self.emit(Op.GELU, [x], y, "GeluOptions")
            case "relu":
                self.emit(Op.RELU, [x], y)
            case "silu":
                gate = self.fixed(Op.LOGISTIC, "sigmoid", x, node)
                self.emit(Op.MUL, [x, gate], y, "MulOptions")
            case "sigmoid" | "tanh":
                builtin = Op.LOGISTIC if node.function == "sigmoid" else Op.TANH
                value = self.fixed(builtin, node.function, x, node)
                if (out.scale, signed_zero_point(out)) == _FIXED[node.function]:
                    self.indices[node.output] = value
                else:
                    self.emit(Op.QUANTIZE, [value], y, "QuantizeOptions")
            case "hardsigmoid":  # relu6(x + 3) / 6, as TFLite's converters write it
                three = self.constant(f"{node.output}/three", np.array([127], np.int8), 3 / 255, -128)
                six = self.tensor(f"{node.output}/relu6", out.shape, Type.INT8, 6 / 255, -128)
                sixth = self.constant(f"{node.output}/sixth", np.array([127], np.int8), 1 / 6 / 255, -128)
                self.emit(Op.ADD, [x, three], six, "AddOptions", fusedActivationFunction=Activation.RELU6)
                self.emit(Op.MUL, [six, sixth], y, "MulOptions")
            case _:
                raise BackendError(f"node '{node.name}': the function '{node.function}' has no TFLite form here")

    def fixed(self, builtin: int, function: str, x: int, node: g.Lut) -> int:
        scale, zero_point = _FIXED[function]
        y = self.tensor(f"{node.output}/{function}", self.described[node.output].shape, Type.INT8, scale, zero_point)
        return self.emit(builtin, [x], y)

    def _concat(self, node: g.Concat) -> None:
        out = self.described[node.output]
        inputs = []
        for name in node.inputs:
            x, t = self.activation(name), self.described[name]
            if t.dtype != "f32" and (t.scale, signed_zero_point(t)) != (out.scale, signed_zero_point(out)):
                same = self.tensor(f"{node.output}/{name}", t.shape, Type.INT8, out.scale, signed_zero_point(out))
                x = self.emit(Op.QUANTIZE, [x], same, "QuantizeOptions")
            inputs.append(x)
        self.emit(Op.CONCATENATION, inputs, self.activation(node.output), "ConcatenationOptions", axis=node.axis)

    def _reshape(self, node: g.Reshape) -> None:
        shape = np.array(self.described[node.output].shape, np.int32)
        inputs = [self.activation(node.input), self.constant(f"{node.output}/shape", shape)]
        self.emit(Op.RESHAPE, inputs, self.activation(node.output), "ReshapeOptions", newShape=shape)

    def _quantize(self, node: g.Quantize) -> None:
        self.emit(Op.QUANTIZE, [self.activation(node.input)], self.activation(node.output), "QuantizeOptions")

    def _dequantize(self, node: g.Dequantize) -> None:
        self.emit(Op.DEQUANTIZE, [self.activation(node.input)], self.activation(node.output), "DequantizeOptions")

    def _softmax(self, node: g.Softmax) -> None:
        t = self.described[node.input]
        value = self.tensor(f"{node.output}/float", t.shape, Type.FLOAT32)
        self.emit(Op.DEQUANTIZE, [self.activation(node.input)], value, "DequantizeOptions")
        self.emit(Op.SOFTMAX, [value], self.activation(node.output), "SoftmaxOptions", beta=1.0)

    def _aten(self, node: g.Aten) -> None:
        raise BackendError(f"node '{node.name}': {node.target} has no TFLite form here")


def signed_zero_point(t: g.Tensor) -> int:
    """The zero point of the int8 container."""
    return arithmetic.canonical_zero_point(t) - 128
