"""Operators of integers: QuantizeLinear and DequantizeLinear, and ONNX Runtime's QOperator form.

QOperator nodes are written out: what the integers stand for, the float operator, and the quantization of its result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.intake.onnx import elementwise, products, windows
from models.intake.onnx.proto import MICROSOFT, Operator
from models.intake.onnx.translate import Quantization, Registry, Translator, Value, aten

registry = Registry()


@registry.operator("QuantizeLinear")
@registry.operator("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(
    t: Translator, op: Operator, x: Value, scale: Value, zero_point: Value | None = None
) -> Value:  # fmt: skip
    t.require(op.get("block_size", 0) == 0, "blocks of weights with scales of their own are not taken")
    code = op.get("output_dtype", 0)
    t.require(code in (0, 2, 3) or zero_point is not None, "only 8 bits are taken")
    dtype = torch.int8 if code == 3 else torch.uint8
    return t.quantize(x, t.quantization(scale, zero_point, op.get("axis", 1), x.rank, dtype))


@registry.operator("DequantizeLinear")
@registry.operator("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(
    t: Translator, op: Operator, x: Value, scale: Value, zero_point: Value | None = None
) -> Value:  # fmt: skip
    t.require(op.get("block_size", 0) == 0, "blocks of weights with scales of their own are not taken")
    return t.dequantize(x, t.quantization(scale, zero_point, op.get("axis", 1), x.rank, x.dtype))


def operand(
    t: Translator, x: Value, scale: Value, zero_point: Value | None, axis: int | None = None
) -> Value:  # fmt: skip
    """What an operand's integers stand for."""
    return t.dequantize(x, t.quantization(scale, zero_point, axis, x.rank, x.dtype))


def result(t: Translator, y: Value, scale: Value, zero_point: Value | None) -> Value:
    """The integers of a result."""
    if y.node is not None:
        y.node.meta.setdefault("source_name", t.operator.outputs[0] if t.operator else "")
    return t.quantize(y, t.quantization(scale, zero_point))


def bias(t: Translator, b: Value | None, x_scale: Value, w_scale: Value) -> Value | None:
    """A bias of 32 bits, in units of both scales' product."""
    if b is None:
        return None
    integers = t.need(b, "bias")
    t.require(integers.dtype is torch.int32 and integers.ndim == 1, "its bias is no list of 32-bit integers")
    scale = t.need(x_scale, "scale").float().reshape(()) * t.need(w_scale, "scale").float().reshape(-1)
    scale = scale.expand(integers.numel()).contiguous() if scale.numel() > 1 else scale.reshape(())
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    return t.stored(integers, Quantization(scale, zero, 0 if scale.ndim else None, torch.int32))


@registry.operator("QLinearConv")
def qlinear_conv(
    t: Translator, op: Operator, x: Value, xs: Value, xz: Value, w: Value, ws: Value, wz: Value, ys: Value, yz: Value,
    b: Value | None = None,
) -> Value:  # fmt: skip
    y = windows.conv(t, op, operand(t, x, xs, xz), operand(t, w, ws, wz, 0), bias(t, b, xs, ws))
    return result(t, y, ys, yz)


@registry.operator("QLinearMatMul")
def qlinear_matmul(
    t: Translator, op: Operator, a: Value, a_s: Value, az: Value, b: Value, bs: Value, bz: Value, ys: Value, yz: Value
) -> Value:  # fmt: skip
    return result(t, products.matmul(t, op, operand(t, a, a_s, az), operand(t, b, bs, bz, b.rank - 1)), ys, yz)


@registry.operator("QGemm", domain=MICROSOFT)
def qgemm(
    t: Translator, op: Operator, a: Value, a_s: Value, az: Value, b: Value, bs: Value, bz: Value,
    c: Value | None = None, ys: Value | None = None, yz: Value | None = None,
) -> Value:  # fmt: skip
    axis = 0 if op.get("transB", 0) else 1
    y = products.gemm(t, op, operand(t, a, a_s, az), operand(t, b, bs, bz, axis), bias(t, c, a_s, bs))
    return y if ys is None else result(t, y, ys, yz)


def _binary(function: Callable[[Translator, Operator, Value, Value], Value]) -> Callable[..., Value]:
    def emit(
        t: Translator, op: Operator, a: Value, a_s: Value, az: Value, b: Value, bs: Value, bz: Value, ys: Value,
        yz: Value | None = None,
    ) -> Value:  # fmt: skip
        return result(t, function(t, op, operand(t, a, a_s, az), operand(t, b, bs, bz)), ys, yz)

    return emit


def _unary(function: Callable[[Translator, Operator, Value], Value]) -> Callable[..., Value]:
    def emit(
        t: Translator, op: Operator, x: Value, xs: Value, xz: Value | None, ys: Value, yz: Value | None = None
    ) -> Value:
        t.require(op.get("channels_last", 0) == 0, "channels_last is not taken; quantize before such a rewrite")
        return result(t, function(t, op, operand(t, x, xs, xz)), ys, yz)

    return emit


def _softmax(t: Translator, op: Operator, x: Value) -> Value:
    # The node has the softmax's own opset as an attribute.
    return elementwise.softmax(t, op, x, opset=op.get("opset", 13))


registry.operator("QLinearAdd", domain=MICROSOFT)(_binary(elementwise.add))
registry.operator("QLinearMul", domain=MICROSOFT)(_binary(elementwise.multiply))
registry.operator("QLinearSigmoid", domain=MICROSOFT)(_unary(elementwise.unary(aten.sigmoid.default)))
registry.operator("QLinearLeakyRelu", domain=MICROSOFT)(_unary(elementwise.leaky_relu))
registry.operator("QLinearSoftmax", domain=MICROSOFT)(_unary(_softmax))
registry.operator("QLinearGlobalAveragePool", domain=MICROSOFT)(_unary(windows.global_average_pool))
registry.operator("QLinearAveragePool", domain=MICROSOFT)(_unary(windows.average_pool))


@registry.operator("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(t: Translator, op: Operator, ys: Value, yz: Value, *parts: Value) -> Value:
    t.require(len(parts) % 3 == 0 and len(parts) > 0, "each input needs a scale and a zero point")
    inputs = [operand(t, *parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return result(t, t.call(aten.cat.default, inputs, op.get("axis", 1)), ys, yz)
