"""Convolutions and matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from agent import graph as g
from agent.errors import ModelError
from models.intake.tflite.importer import Import, same_padding
from models.intake.tflite.reader import LIMITS, Operator


@dataclass(frozen=True)
class _Weights:
    """array: in the file's layout, s8, or u8 with its zero point; scales: f32 [1] or one an output channel."""

    array: np.ndarray
    zero_point: int
    scales: np.ndarray


def _weights(im: Import, op: Operator, i: int, rank: int, axis: int, x: g.Tensor) -> _Weights:
    """The constant input i. axis: of the output channels."""
    t = im.described(im.at(op, i))
    if not im.is_constant(t.index):
        raise ModelError(f"its weights '{t.name}' must be a constant")
    if x.dtype not in ("u8", "s8"):
        kind = im.described(op.inputs[0]).type
        if t.type in ("int8", "uint8"):
            raise ModelError(f"'{x.name}' is {kind} and its weights {t.type} (dynamic range quantization): convert "
                             "with full integer quantization, with a representative dataset")  # fmt: skip
        im.quantized(op.inputs[0])  # says why
    if t.type not in ("int8", "uint8"):
        raise ModelError(f"its weights '{t.name}' are {t.type}; int8 and uint8 are taken")
    array = t.array()
    if array.ndim != rank:
        raise ModelError(f"its weights '{t.name}' have shape {list(array.shape)}, where {rank} axes are needed")
    scales = np.asarray(t.scales, np.float32)
    channels = array.shape[axis]
    if len(scales) not in (1, channels) or (len(scales) > 1 and t.axis != axis):
        raise ModelError(f"its weights '{t.name}' have {len(scales)} scales along axis {t.axis}; one is needed, or "
                         f"{channels} along axis {axis}")  # fmt: skip
    points = np.unique(t.zero_points)
    if len(points) != 1:
        raise ModelError(f"its weights '{t.name}' have several zero points; one is taken")
    zero_point = int(points[0])
    if array.dtype == np.int8 and zero_point != 0:  # not by TFLite's rules, but it has a meaning
        array, zero_point = (array.view(np.uint8) ^ np.uint8(128)), zero_point + 128
    if not 0 <= zero_point <= 255:
        raise ModelError(f"its weights '{t.name}' have the zero point {points[0]}")
    return _Weights(array, zero_point, scales)


def _constants(
    im: Import, op: Operator, w: _Weights, weight: np.ndarray, bias: int, x: g.Tensor, y: g.Tensor
) -> dict[str, object]:
    """A node's fields for weights [oc, …]; bias: which input it is."""
    channels = weight.shape[0]
    values = np.zeros(channels, np.int32)
    index = im.at(op, bias)
    if index >= 0:
        t = im.described(index)
        if t.type != "int32":
            raise ModelError(f"its bias '{t.name}' is {t.type}; int32 is taken")
        values = im.array(op, bias)
        if values.size != channels:
            raise ModelError(f"its bias '{t.name}' has {values.size} elements for {channels} channels")
    with np.errstate(all="ignore"):
        multiplier = np.float32(x.scale) * w.scales / np.float32(y.scale)  # numerics.md 5
    return {
        "weight": im.b.constant(f"{y.name}.weight", weight),
        "bias": im.b.constant(f"{y.name}.bias", values.reshape(channels)),
        "multiplier": im.b.constant(f"{y.name}.multiplier", np.broadcast_to(multiplier, (channels,))),
        "weight_zero_point": w.zero_point,
    }


def _strides(op: Operator, kind: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Stride and dilation."""
    stride = (op.option(kind, "StrideH"), op.option(kind, "StrideW"))
    dilation = (op.option(kind, "DilationHFactor"), op.option(kind, "DilationWFactor"))
    if not all(0 < v <= LIMITS.window for v in (*stride, *dilation)):
        raise ModelError(f"its stride {stride} and dilation {dilation} must lie in 1..{LIMITS.window}")
    return stride, dilation


def _convolution(im: Import, op: Operator, kind: str, w: _Weights, weight: np.ndarray, groups: int) -> None:
    """weight: [oc, kh, kw, ic / groups]."""
    stride, dilation = _strides(op, kind)
    x, padding = im.padded.get(op.inputs[0]) or (im.quantized(op.inputs[0]), (0, 0, 0, 0))
    if op.option(kind, "Padding") == 0:  # SAME; a PAD is only taken over before VALID
        padding = same_padding(x.shape[1:3], weight.shape[1:3], stride, dilation)
    y = im.output(op)
    lo, hi = im.clamp(y, op.option(kind, "FusedActivationFunction"))
    common = _constants(im, op, w, weight, 2, x, y)
    im.b.add(g.Conv2d(y.name, x.name, y.name, lo=lo, hi=hi, stride=stride, padding=padding, dilation=dilation,
                      groups=groups, **common))  # type: ignore[arg-type]  # fmt: skip


def _map(im: Import, op: Operator, i: int) -> g.Tensor:
    """An input of four axes, also before a PAD that is taken over."""
    index = im.at(op, i)
    x = im.padded[index][0] if index in im.padded else im.activation(index)
    if len(x.shape) != 4:
        raise ModelError(f"'{x.name}' has shape {list(x.shape)}, where [n, h, w, c] is needed")
    return x


def conv2d(im: Import, op: Operator) -> None:
    """weights [oc, kh, kw, ic / groups]."""
    x = _map(im, op, 0)
    w = _weights(im, op, 1, 4, 0, x)
    depth = w.array.shape[3]
    if depth == 0 or x.shape[3] % depth:
        raise ModelError(f"its weights take {depth} channels of {x.shape[3]}")
    _convolution(im, op, "Conv2DOptions", w, w.array, x.shape[3] // depth)


def depthwise(im: Import, op: Operator) -> None:
    """weights [1, kh, kw, c * multiplier]; an input's channels follow each other in the output."""
    x = _map(im, op, 0)
    w = _weights(im, op, 1, 4, 3, x)
    if w.array.shape[0] != 1 or w.array.shape[3] % x.shape[3]:
        raise ModelError(f"its weights {list(w.array.shape)} do not fit {x.shape[3]} channels")
    _convolution(im, op, "DepthwiseConv2DOptions", w, w.array.transpose(3, 1, 2, 0), x.shape[3])


def transpose_conv(im: Import, op: Operator) -> None:
    """A convolution, stride 1, of the input with zeros between its elements, by the weights turned by 180 degrees."""
    kind = "TransposeConvOptions"
    x = _map(im, op, 2)
    w = _weights(im, op, 1, 4, 0, x)
    if w.array.shape[3] != x.shape[3]:
        raise ModelError(f"its weights take {w.array.shape[3]} channels of {x.shape[3]}")
    stride = (op.option(kind, "StrideH"), op.option(kind, "StrideW"))
    y = im.output(op)
    if len(y.shape) != 4 or not all(0 < s <= LIMITS.window for s in stride):
        raise ModelError(f"its output is {list(y.shape)}, its stride {stride}")
    kernel = w.array.shape[1:3]
    before, after = [], []
    for n, out, k, s in zip(x.shape[1:3], y.shape[1:3], kernel, stride, strict=True):
        cropped = max((n - 1) * s + k - out, 0) // 2 if op.option(kind, "Padding") == 0 else 0
        before.append(k - 1 - cropped)
        after.append(out - 1 + cropped - (n - 1) * s)
    if min(*before, *after) < 0:
        raise ModelError(f"{list(x.shape)} can't become {list(y.shape)}")
    shape = [x.shape[0], *(o + k - 1 for o, k in zip(y.shape[1:3], kernel, strict=True)), x.shape[3]]
    spread = im.temporary(x, f"{y.name}/spread", shape)
    im.b.add(g.Pad(spread.name, x.name, spread.name, (0, *before, 0), (0, *after, 0),
                   (0, stride[0] - 1, stride[1] - 1, 0), x.zero_point))  # fmt: skip
    lo, hi = im.clamp(y, op.option(kind, "FusedActivationFunction"))
    common = _constants(im, op, w, w.array[:, ::-1, ::-1], 3, x, y)
    im.b.add(g.Conv2d(y.name, spread.name, y.name, lo=lo, hi=hi, **common))  # type: ignore[arg-type]


def fully_connected(im: Import, op: Operator) -> None:
    """weights [n, k]; the input is flattened to rows of k."""
    kind = "FullyConnectedOptions"
    if op.option(kind, "WeightsFormat") != 0:
        raise ModelError("its weights are shuffled for one processor; convert again with the default format")
    x = im.activation(im.at(op, 0))
    w = _weights(im, op, 1, 2, 0, x)
    n, k = w.array.shape
    elements = math.prod(x.shape)
    if k == 0 or elements % k:
        raise ModelError(f"its weights take rows of {k}, which {list(x.shape)} does not have")
    y = im.output(op)
    if math.prod(y.shape) != elements // k * n:
        raise ModelError(f"it gives {list(y.shape)} from {list(x.shape)} and weights {[n, k]}")
    if x.shape[-1] != k or y.shape != (*x.shape[:-1], n):
        x = im.reshape(x, (elements // k, k), f"{y.name}/rows")
    flat = y if y.shape == (*x.shape[:-1], n) else im.temporary(y, f"{y.name}/flat", (elements // k, n))
    lo, hi = im.clamp(y, op.option(kind, "FusedActivationFunction"))
    common = _constants(im, op, w, w.array, 2, x, y)
    im.b.add(g.Linear(flat.name, x.name, flat.name, lo=lo, hi=hi, **common))  # type: ignore[arg-type]
    if flat is not y:
        im.b.add(g.Reshape(y.name, flat.name, y.name))


def batch_matmul(im: Import, op: Operator) -> None:
    """[..., m, k] times [..., k, n], each perhaps with its last two axes exchanged."""
    a, b, y = im.quantized(im.at(op, 0)), im.quantized(im.at(op, 1)), im.output(op)
    rank = len(y.shape)
    if rank < 2 or min(len(a.shape), len(b.shape)) < 2:
        raise ModelError("its operands need two axes")
    if op.option("BatchMatMulOptions", "AdjX"):
        a = im.transpose(a, _exchanged(len(a.shape)), f"{y.name}/transposed")
    a = im.expand(a, (*y.shape[:-2], *a.shape[-2:]), f"{y.name}/operand0")
    b = im.expand(b, (*y.shape[:-2], *b.shape[-2:]), f"{y.name}/operand1")
    lo, hi = im.clamp(y, 0)
    adjoint = bool(op.option("BatchMatMulOptions", "AdjY"))
    im.b.add(g.Matmul(y.name, (a.name, b.name), y.name, lo, hi, transpose_b=adjoint))


def _exchanged(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
