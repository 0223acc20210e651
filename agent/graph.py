"""The typed graph: tensors, operators, and the rules that a valid graph keeps.

A graph is a list of nodes in the order of execution. Activations are named and described by ``Tensor``;
weights, biases, multipliers and tables are *constants*, arrays that live beside the graph in the model file.

Layout: a 4-D activation is NHWC; the last axis is always the channel or feature axis. Batch is axis 0.
An activation of dtype ``u8`` or ``s8`` is quantized per tensor: value = (q - zero_point) * scale.
``lo`` and ``hi`` of a node are the clamp of its output in *container units* (so ReLU is ``lo = zero_point``).
``s32`` is a plain integer: the index of an ArgMax, or what a torch operator takes or gives as an index or a mask.

The arithmetic of every operator is fixed in docs/numerics.md; all backends give the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

Dtype = Literal["u8", "s8", "s32", "f32"]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An activation. ``scale`` is exactly representable in fp32; both are 0 for f32 and s32."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    scale: float = 0.0
    zero_point: int = 0


class _Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    name: str


class Conv2d(_Node, tag="conv2d", frozen=True):
    """Dense, grouped or depthwise convolution with requantization.

    weight: s8 [OC, KH, KW, IC / groups], or u8 with a ``weight_zero_point``: a weight then means w - weight_zero_point.
    bias: s32 [OC]; multiplier: f32 [OC] (constants, by name).
    stride, dilation: (y, x); padding: (top, left, bottom, right), filled with the input's zero point.
    """

    input: str
    output: str
    weight: str
    bias: str
    multiplier: str
    lo: int
    hi: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight_zero_point: int = 0


class Linear(_Node, tag="linear", frozen=True):
    """Matrix product over the last axis. weight: s8 [N, K], or u8 as for Conv2d; bias: s32 [N]; multiplier: f32 [N]."""

    input: str
    output: str
    weight: str
    bias: str
    multiplier: str
    lo: int
    hi: int
    weight_zero_point: int = 0


class Matmul(_Node, tag="matmul", frozen=True):
    """Batched matrix product of two activations, requantized with fp32(fp32(s1 * s2) / sy).

    inputs: [..., m, k] and [..., k, n], or, with ``transpose_b``, [..., n, k]; the leading axes are the same.
    """

    inputs: tuple[str, str]
    output: str
    lo: int
    hi: int
    transpose_b: bool = False


class MaxPool2d(_Node, tag="max_pool2d", frozen=True):
    """Maximum over windows; padding never wins. Input and output have the same quantization."""

    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


class AvgPool2d(_Node, tag="avg_pool2d", frozen=True):
    """Mean over windows, requantized with fp32(sx / (n * sy)); global pooling is a window as large as the map.

    n is the window's size, or, with ``count_include_pad`` false, the number of its elements inside the map.
    """

    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    lo: int
    hi: int
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    count_include_pad: bool = True


class Add(_Node, tag="add", frozen=True):
    """Elementwise sum of two activations of the same shape (the residual of a block); ``subtract``: first - second."""

    inputs: tuple[str, str]
    output: str
    lo: int
    hi: int
    subtract: bool = False


class Mul(_Node, tag="mul", frozen=True):
    """Elementwise product of two activations, requantized with fp32(fp32(s1 * s2) / sy).

    Both have the output's shape, or the second is [n, 1, 1, c] beside [n, h, w, c]: the gate of squeeze-and-excite.
    """

    inputs: tuple[str, str]
    output: str
    lo: int
    hi: int


class Lut(_Node, tag="lut", frozen=True):
    """Any unary function, as a table. table: u8 [256].

    Index and entry are in *canonical* form: the container for u8, container + 128 for s8. ``function`` names it for
    people and exporters (``hardswish``, ``silu``, …); the table alone is what runs.
    """

    input: str
    output: str
    table: str
    function: str = ""


class Concat(_Node, tag="concat", frozen=True):
    """Concatenation along ``axis``; an input whose quantization differs is requantized with fp32(si / sy)."""

    inputs: tuple[str, ...]
    output: str
    axis: int


class Transpose(_Node, tag="transpose", frozen=True):
    """Axes in another order: axis i of the output is axis ``axes[i]`` of the input. Any dtype; quantization stays."""

    input: str
    output: str
    axes: tuple[int, ...]


class Slice(_Node, tag="slice", frozen=True):
    """Element i of an axis is the input's element begin + i * step; step may be negative. Any dtype."""

    input: str
    output: str
    begin: tuple[int, ...]
    step: tuple[int, ...]


class Expand(_Node, tag="expand", frozen=True):
    """Axes of extent 1 repeated to the output's extent; the rank stays. Any dtype."""

    input: str
    output: str


class Pad(_Node, tag="pad", frozen=True):
    """A frame of ``value`` (container units), and ``interior`` of it between neighbours. Counts are by axis."""

    input: str
    output: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    interior: tuple[int, ...]
    value: int


class Resize2d(_Node, tag="resize2d", frozen=True):
    """Bilinear or nearest interpolation of a map [n, h, w, c], in integers; quantization stays.

    rows: s32 [oh, 3], columns: s32 [ow, 3]: for each element of the output (low, high, weight of high), the weight in
    2048ths, 0 for nearest. With a row (y0, y1, wy) and a column (x0, x1, wx):
    q = ((2048 - wy) * ((2048 - wx) * q[y0, x0] + wx * q[y0, x1]) + wy * (the same of y1) + 2**21) >> 22.
    """

    input: str
    output: str
    rows: str
    columns: str


class ArgMax(_Node, tag="argmax", frozen=True):
    """The index of the first largest element of the last axis, which the s32 output lacks."""

    input: str
    output: str


class Constant(_Node, tag="constant", frozen=True):
    """An activation whose value never changes. value: a constant of the output's shape, u8, s8, s32 or f32 as it is."""

    output: str
    value: str


class LayerNorm(_Node, tag="layer_norm", frozen=True):
    """Normalization over the last axis of n elements, exact in every backend. gamma, beta: f32 [n].

    With the integers S = sum v and D = n * sum v^2 - S^2, and E = epsilon * n^2 / sx^2 in double:
    r = fp32(1 / sqrt(double(D) + E));  t = fp32(fp32(n * v - S) * r);
    q = clamp(rint(fp32(fp32(t * fp32(gamma / sy)) + fp32(beta / sy)))) + zp.
    """

    input: str
    output: str
    gamma: str
    beta: str
    epsilon: float
    lo: int
    hi: int


class Reshape(_Node, tag="reshape", frozen=True):
    """The same elements in row-major order under another shape; dtype and quantization stay."""

    input: str
    output: str


class Quantize(_Node, tag="quantize", frozen=True):
    """f32 to u8 or s8: clamp(rint(x / scale), qmin - zp, qmax - zp) + zp; NaN becomes the zero point."""

    input: str
    output: str


class Dequantize(_Node, tag="dequantize", frozen=True):
    """u8 or s8 to f32: float(q - zp) * scale, one fp32 product."""

    input: str
    output: str


class Softmax(_Node, tag="softmax", frozen=True):
    """Softmax over the last axis of a quantized input, to f32 or at once quantized; exact in every backend.

    table: s32 [256], table[d] = rint(exp(-d * scale) * 2**23) from a double-precision exp. With m the row's
    maximum: p_i = fp32(double(table[m - q_i]) / double(sum_j table[m - q_j])). The sum is an integer, so its
    order does not matter, and both roundings are IEEE's. A u8 or s8 output is what Quantize would make of p.
    """

    input: str
    output: str
    table: str


class Aten(_Node, tag="aten", frozen=True):
    """A torch operator in float, for what has no int8 form; its inputs and outputs are f32 or s32.

    ``target`` is ``aten::name.overload``. ``args`` and ``kwargs`` are JSON; a string ``"$0"`` in them stands for
    ``inputs[0]``, ``"#name"`` for the constant ``name`` (f32, s32 or s64). Activations are handed over with their axes
    as they are here; an s32 one as int64, or, where the string ends in ``:bool``, as bool. What comes back is stored
    as its output's dtype, false and true as 0 and 1. Runs only where torch is installed.
    """

    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    args: msgspec.Raw
    kwargs: msgspec.Raw = msgspec.Raw(b"{}")


Node = (
    Conv2d
    | Linear
    | Matmul
    | MaxPool2d
    | AvgPool2d
    | Add
    | Mul
    | Lut
    | Concat
    | Transpose
    | Slice
    | Expand
    | Pad
    | Resize2d
    | ArgMax
    | Constant
    | LayerNorm
    | Reshape
    | Quantize
    | Dequantize
    | Softmax
    | Aten
)


def method_for(owner: object, prefix: str, node: Node) -> Callable[..., Any]:
    """``owner``'s method for an operator: ``prefix`` and the operator's tag, such as ``_conv2d``."""
    # Interned: Python keeps each string that a method has been looked up by, thousands of them, new ones at each load.
    return getattr(owner, sys.intern(prefix + str(node.__struct_config__.tag)))  # type: ignore[no-any-return]


_CONSTANTS = ("weight", "bias", "multiplier", "table", "rows", "columns", "value", "gamma", "beta")


def node_constants(node: Node) -> tuple[str, ...]:
    """The constants that a node names."""
    if isinstance(node, Aten):
        return tuple(_references([msgspec.json.decode(node.args), msgspec.json.decode(node.kwargs)]))
    named = (getattr(node, field, None) for field in _CONSTANTS)
    return tuple(name for name in named if isinstance(name, str))


def _references(value: object) -> Iterator[str]:
    if isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _references(v)
    elif isinstance(value, str) and value[:1] == "#":
        yield value[1:].partition(":")[0]


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nodes in order of execution; ``inputs`` and ``outputs`` name tensors."""

    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
