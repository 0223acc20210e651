"""Sums, products and functions of elements; softmax; what converts between containers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED, container_range
from agent.errors import ModelError
from models.intake.tflite.importer import NONE, Import
from models.intake.tflite.reader import Operator, Tensor

Function = Callable[[np.ndarray], np.ndarray]


def _gelu(v: np.ndarray) -> np.ndarray:
    erf = np.array([math.erf(x) for x in v / math.sqrt(2)])
    return 0.5 * v * (1 + erf)


def _gelu_tanh(v: np.ndarray) -> np.ndarray:
    return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))


UNARY: dict[str, tuple[str, Function]] = {
    "RELU": ("relu", lambda v: np.maximum(v, 0)),
    "RELU6": ("relu6", lambda v: np.clip(v, 0, 6)),
    "RELU_N1_TO_1": ("hardtanh", lambda v: np.clip(v, -1, 1)),
    "RELU_0_TO_1": ("clamp", lambda v: np.clip(v, 0, 1)),
    "LOGISTIC": ("sigmoid", lambda v: 1 / (1 + np.exp(-v))),
    "TANH": ("tanh", np.tanh),
    "HARD_SWISH": ("hardswish", lambda v: v * np.clip(v + 3, 0, 6) / 6),
    "ELU": ("elu", lambda v: np.where(v < 0, np.expm1(v), v)),
    "ABS": ("abs", np.abs),
    "NEG": ("neg", np.negative),
    "EXP": ("exp", np.exp),
    "LOG": ("log", np.log),
    "SQRT": ("sqrt", np.sqrt),
    "RSQRT": ("rsqrt", lambda v: 1 / np.sqrt(v)),
    "SQUARE": ("square", np.square),
    "SIN": ("sin", np.sin),
    "COS": ("cos", np.cos),
    "FLOOR": ("floor", np.floor),
    "CEIL": ("ceil", np.ceil),
    "ROUND": ("round", np.rint),
    "SIGN": ("sign", np.sign),
}  # fmt: skip


def _table(
    im: Import, x: g.Tensor, y: g.Tensor, function: Function, name: str, lo: int | None = None, hi: int | None = None
) -> None:
    if x.shape != y.shape:
        raise ModelError(f"it takes {list(x.shape)} and gives {list(y.shape)}")
    with np.errstate(all="ignore"):  # poles and overflows become the least or the greatest container
        im.b.lut(x, y, function, name, lo, hi)


def unary(im: Import, op: Operator) -> None:
    """A function of each element."""
    name, function = UNARY[op.name]
    _table(im, im.quantized(im.at(op, 0)), im.output(op), function, name)


def leaky_relu(im: Import, op: Operator) -> None:
    """v, or alpha * v below zero."""
    alpha = op.option("LeakyReluOptions", "Alpha")
    _table(im, im.quantized(im.at(op, 0)), im.output(op), lambda v: np.where(v < 0, v * alpha, v), "leaky_relu")


def gelu(im: Import, op: Operator) -> None:
    """v * Phi(v), or its approximation by tanh."""
    function = _gelu_tanh if op.option("GeluOptions", "Approximate") else _gelu
    _table(im, im.quantized(im.at(op, 0)), im.output(op), function, "gelu")


# Two operands


def _real(t: Tensor) -> np.ndarray:
    """A quantized constant's value, in double."""
    if t.type not in ("uint8", "int8") or len(t.scales) != 1:
        raise ModelError(f"the constant '{t.name}' is {t.type}, where int8 or uint8 with one scale is needed")
    return (t.array().astype(np.float64) - float(t.zero_points[0])) * float(t.scales[0])


def _scalar(im: Import, op: Operator) -> tuple[int, float] | None:
    """Which operand is not constant, and the value of the other one, a constant of one element."""
    for other in (0, 1):
        index = im.at(op, 1 - other)
        if im.is_constant(index) and im.described(index).array().size == 1:
            return other, float(_real(im.described(index)).ravel()[0])
    return None


def _with_scalar(im: Import, op: Operator, activation: int, name: str, functions: tuple[Function, Function]) -> None:
    """functions: of the operand that is not constant, where it is the first, and the second."""
    found = _scalar(im, op)
    if found is None:
        raise ModelError("one operand must be a constant of one element; replace it by ADD, SUB or MUL")
    which, _ = found
    x, y = im.quantized(im.at(op, which)), im.output(op)
    x = im.reshape(x, y.shape, f"{y.name}/rank")
    _table(im, x, y, functions[which], name, *im.clamp(y, activation))


def with_scalar(im: Import, op: Operator) -> None:
    """What is a table where one operand is a constant of one element, and nothing else."""
    c = (_scalar(im, op) or (0, 0.0))[1]
    match op.name:
        case "DIV":
            _with_scalar(im, op, op.option("DivOptions", "FusedActivationFunction"), "div",
                         (lambda v: v / np.float64(c), lambda v: c / v))  # fmt: skip
        case "MAXIMUM":
            _with_scalar(im, op, NONE, "maximum", (lambda v: np.maximum(v, c),) * 2)
        case _:
            _with_scalar(im, op, NONE, "minimum", (lambda v: np.minimum(v, c),) * 2)


def _operands(im: Import, op: Operator, y: g.Tensor) -> list[g.Tensor]:
    """Both operands, broadcast to the output's shape."""
    return [im.expand(im.quantized(im.at(op, i)), y.shape, f"{y.name}/operand{i}") for i in (0, 1)]


def add(im: Import, op: Operator) -> None:
    """a + b, broadcast."""
    activation = op.option("AddOptions", "FusedActivationFunction")
    found = _scalar(im, op)
    if found is not None:
        _with_scalar(im, op, activation, "add", (lambda v: v + found[1],) * 2)
        return
    y = im.output(op)
    a, b = _operands(im, op, y)
    im.b.add(g.Add(y.name, (a.name, b.name), y.name, *im.clamp(y, activation)))


def subtract(im: Import, op: Operator) -> None:
    """a - b, broadcast."""
    activation = op.option("SubOptions", "FusedActivationFunction")
    found = _scalar(im, op)
    if found is not None:
        _with_scalar(im, op, activation, "sub", (lambda v: v - found[1], lambda v: found[1] - v))
        return
    y = im.output(op)
    a, b = _operands(im, op, y)
    im.b.add(g.Add(y.name, (a.name, b.name), y.name, *im.clamp(y, activation), subtract=True))


def multiply(im: Import, op: Operator) -> None:
    """a * b, broadcast; the gate [n, 1, 1, c] beside [n, h, w, c] stays one."""
    activation = op.option("MulOptions", "FusedActivationFunction")
    found = _scalar(im, op)
    if found is not None:
        _with_scalar(im, op, activation, "mul", (lambda v: v * found[1],) * 2)
        return
    y = im.output(op)
    _product(im, im.quantized(im.at(op, 0)), im.quantized(im.at(op, 1)), y, *im.clamp(y, activation))


def _product(im: Import, a: g.Tensor, b: g.Tensor, y: g.Tensor, lo: int, hi: int) -> None:
    if b.shape == y.shape != a.shape:
        a, b = b, a
    a = im.expand(a, y.shape, f"{y.name}/operand0")
    ranked = (1,) * (len(y.shape) - len(b.shape)) + b.shape
    if len(y.shape) == 4 and ranked[1:] == (1, 1, y.shape[3]) and ranked[0] in (1, y.shape[0]):
        b = im.expand(b, (y.shape[0], 1, 1, y.shape[3]), f"{y.name}/operand1")
    else:
        b = im.expand(b, y.shape, f"{y.name}/operand1")
    im.b.add(g.Mul(y.name, (a.name, b.name), y.name, lo, hi))


def prelu(im: Import, op: Operator) -> None:
    """v, or slope * v below zero. One slope is a table; several are max(v, 0) + min(v, 0) * slope, of which one term is
    zero: the sum of the two, both in the output's quantization, is exact."""
    x, y = im.quantized(im.at(op, 0)), im.output(op)
    slope = im.described(im.at(op, 1))
    if not im.is_constant(slope.index):
        raise ModelError("its slopes must be a constant")
    values = _real(slope)
    if values.size == 1:
        alpha = float(values.ravel()[0])
        _table(im, x, y, lambda v: np.where(v < 0, v * alpha, v), "prelu")
        return
    if x.shape != y.shape:
        raise ModelError(f"it takes {list(x.shape)} and gives {list(y.shape)}")
    positive = im.temporary(y, f"{y.name}/positive", y.shape)
    negative = im.temporary(x, f"{y.name}/negative", y.shape)
    scaled = im.temporary(y, f"{y.name}/scaled", y.shape)
    im.b.lut(x, positive, lambda v: np.maximum(v, 0), "relu")
    im.b.lut(x, negative, lambda v: np.minimum(v, 0), "minimum")
    low, high = container_range(y)
    _product(im, negative, im.activation(slope.index), scaled, low, high)
    im.b.add(g.Add(y.name, (positive.name, scaled.name), y.name, low, high))


# The last axis


def softmax(im: Import, op: Operator) -> None:
    """Over the last axis. A float one must follow a DEQUANTIZE, whose input it then takes."""
    beta = op.option("SoftmaxOptions", "Beta")
    index = im.at(op, 0)
    x = im.dequantized.get(index) or im.quantized(index)
    y = im.output(op, quantized=False)
    if x.shape != y.shape:
        raise ModelError(f"it takes {list(x.shape)} and gives {list(y.shape)}")
    if not 0 < beta < 1e6:
        raise ModelError(f"its beta is {beta}")
    im.b.softmax(x, y, beta)


def arg_max(im: Import, op: Operator) -> None:
    """The index of the first greatest element along an axis."""
    x, y = im.quantized(im.at(op, 0)), im.output(op, quantized=False)
    (axis,) = im.integers(op, 1, 1) or [None]
    rank = len(x.shape)
    if axis is None or not -rank <= axis < rank:
        raise ModelError(f"its axis is {axis}, of {rank}")
    axis %= rank
    x = im.transpose(x, [a for a in range(rank) if a != axis] + [axis], f"{y.name}/transposed")
    im.b.add(g.ArgMax(y.name, x.name, y.name))


# Containers


def quantize(im: Import, op: Operator) -> None:
    """f32 to a container, or from one to another."""
    x, y = im.activation(im.at(op, 0)), im.output(op)
    if x.dtype == "f32":
        im.b.add(g.Quantize(y.name, x.name, y.name))
    elif x.dtype in QUANTIZED:
        im.b.requantize(x, y)
    else:
        raise ModelError(f"it takes {x.dtype}; float32, int8 and uint8 are taken")


def dequantize(im: Import, op: Operator) -> None:
    """A container to f32."""
    t = im.described(im.at(op, 0))
    if im.is_constant(t.index):
        raise ModelError(f"its input '{t.name}' is a constant ({t.type}): a float model with small weights; "
                         "convert with full integer quantization")  # fmt: skip
    x, y = im.quantized(t.index), im.output(op, quantized=False)
    if y.dtype != "f32":
        raise ModelError(f"it gives {y.dtype}")
    im.dequantized[op.outputs[0]] = x
    im.b.add(g.Dequantize(y.name, x.name, y.name))


def cast(im: Import, op: Operator) -> None:
    """The integer itself in another type; a quantization is not looked at."""
    x, y = im.activation(im.at(op, 0)), im.output(op, quantized=False)
    if x.dtype == y.dtype == "s32":
        im.b.add(g.Reshape(y.name, x.name, y.name))
    elif x.dtype in QUANTIZED and (y.dtype in QUANTIZED or y.dtype == "f32"):
        plain = x
        if y.dtype in QUANTIZED or (x.scale, x.zero_point) != (1.0, 0):
            plain = y if y.dtype in QUANTIZED else im.b.tensor(f"{y.name}/integers", x.shape, x.dtype, 1.0, 0)
            containers = np.arange(256) + container_range(x)[0]
            table = ((containers - container_range(plain)[0]) % 256).astype(np.uint8)  # wraps, as a cast does
            im.b.add(g.Lut(plain.name, x.name, plain.name, im.b.constant(f"{plain.name}.table", table), "cast"))
        if y.dtype == "f32":
            im.b.add(g.Dequantize(y.name, plain.name, y.name))
    else:
        raise ModelError(f"from {im.described(im.at(op, 0)).type} to {im.source.tensors[op.outputs[0]].type} has no "
                         "form here: quantize the model wholly to int8")  # fmt: skip
