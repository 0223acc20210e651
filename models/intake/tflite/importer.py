"""The walk over a TFLite file's operators, and what they share: tensors, clamps, moves.

An operator's function, in ``elementwise``, ``moves`` or ``weighted``, adds nodes to ``Import.b`` for its output tensor.
A tensor of the graph has the name of the file's tensor whose value it has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent import graph as g
from agent.arithmetic import QUANTIZED, container_range
from agent.errors import ModelError
from models.intake.builder import GraphBuilder
from models.intake.tflite import reader

_DTYPES: dict[str, g.Dtype] = {"uint8": "u8", "int8": "s8", "int32": "s32", "int64": "s32", "float32": "f32",
                               "bool": "s32"}  # fmt: skip
_CONTROL_FLOW = {"IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE"}
_LISTED = 12
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3
_CLAMPS = {NONE: (None, None), RELU: (0.0, None), RELU_N1_TO_1: (-1.0, 1.0), RELU6: (0.0, 6.0)}


class Import:
    """A file on its way into a graph. ``b`` is the graph in the making."""

    def __init__(self, source: reader.Source) -> None:
        self.source = source
        self.b = GraphBuilder(constant_bytes=4 * source.bytes + (1 << 26))
        self.values: dict[int, g.Tensor] = {}
        # How often a tensor is read; an output of the graph is read by whoever asks for it.
        self.reads = Counter([*(i for op in source.operators for i in op.inputs), *source.outputs])
        self.padded: dict[int, tuple[g.Tensor, tuple[int, int, int, int]]] = {}  # by PADs that their readers take over
        self.dequantized: dict[int, g.Tensor] = {}  # the quantized source of a float tensor

    def run(self, operators: Mapping[str, Importer]) -> tuple[g.Graph, dict[str, np.ndarray]]:
        """operators: by the schema's name."""
        troubles: list[str] = []
        inputs = [self.graph_input(i) for i in dict.fromkeys(self.source.inputs)]
        for op in self.source.operators:
            try:
                operators.get(op.name if not op.custom else "", unsupported)(self, op)
            except ModelError as e:
                troubles.append(f"operator {op.index}, {op.name} ('{self.source.tensors[op.outputs[0]].name}'): {e}")
            for i in op.outputs:
                if i not in self.values and troubles:
                    self.forget(i)
        if troubles:
            rest = len(troubles) - _LISTED
            raise ModelError("; ".join(troubles[:_LISTED]) + (f"; and {rest} more" if rest > 0 else ""))
        outputs = [self.activation(i) for i in self.source.outputs]
        return self.b.finish(inputs, outputs)

    def graph_input(self, index: int) -> g.Tensor:
        t = self.source.tensors[index]
        if any(axis > 0 for axis in t.dynamic):
            raise ModelError(f"input '{t.name}' has axes of unknown extent, {list(t.dynamic)}: convert the model with "
                             "a fixed input shape")  # fmt: skip
        self.values[index] = self.declare(t)
        return self.values[index]

    def forget(self, index: int) -> None:
        """Stands in for the output of an operator that has no form, so that the rest can be looked at."""
        try:
            self.values[index] = self.declare(self.source.tensors[index])
        except ModelError:
            self.values[index] = self.b.tensor("unknown", (1,), "f32")

    # Tensors

    def declare(self, t: reader.Tensor) -> g.Tensor:
        """The graph's tensor for an activation of the file."""
        if t.trouble:
            raise ModelError(t.trouble)
        if t.type not in _DTYPES:
            more = "; only 8-bit activations are: quantize with int8 activations" if t.type == "int16" else ""
            raise ModelError(f"'{t.name}' is {t.type}, which can't be imported{more}")
        shape = t.shape or (1,)
        if min(shape) < 0:
            raise ModelError(f"'{t.name}' has the shape {list(shape)}: convert the model with fixed shapes")
        _check(t.name, shape)
        dtype = _DTYPES[t.type]
        if dtype not in QUANTIZED:
            return self.b.tensor(t.name, shape, dtype)
        if len(t.scales) > 1:
            raise ModelError(f"'{t.name}' is an activation with {len(t.scales)} scales; one is taken")
        if len(t.scales) == 0:  # plain integers
            return self.b.tensor(t.name, shape, dtype, 1.0, 0)
        scale, zero_point = float(t.scales[0]), int(t.zero_points[0])
        low, high = (-128, 127) if dtype == "s8" else (0, 255)
        if not (1e-30 < scale < 1e30 and low <= zero_point <= high):
            raise ModelError(f"'{t.name}' has the scale {scale} and the zero point {zero_point}, which no {t.type} has")
        return self.b.tensor(t.name, shape, dtype, scale, zero_point)

    def described(self, index: int) -> reader.Tensor:
        """A tensor of the file. Raises ``ModelError`` where the operator lacks it."""
        if index < 0:
            raise ModelError("an input is missing")
        return self.source.tensors[index]

    def at(self, op: reader.Operator, i: int) -> int:
        """The index of an operator's input i; -1 where it has none."""
        return op.inputs[i] if i < len(op.inputs) else -1

    def is_constant(self, index: int) -> bool:
        return index >= 0 and index not in self.values and self.source.tensors[index].data is not None

    def array(self, op: reader.Operator, i: int) -> np.ndarray:
        """The value of a constant input."""
        t = self.described(self.at(op, i))
        if t.index in self.values:
            raise ModelError(f"'{t.name}' must be a constant")
        return t.array()

    def integers(self, op: reader.Operator, i: int, most: int = 64) -> list[int]:
        """The value of a constant input of a few integers: a shape, axes, …"""
        values = self.array(op, i)
        if values.dtype.kind not in "iu" or values.size > most:
            raise ModelError(f"'{self.described(self.at(op, i)).name}' must be at most {most} integers")
        return [int(v) for v in values.ravel()]

    def activation(self, index: int) -> g.Tensor:
        """A tensor that has been produced; a constant one is produced now."""
        t = self.described(index)
        if index not in self.values:
            if t.data is None:
                raise ModelError(f"'{t.name}' is read before it is produced")
            value = t.array()
            made = self.declare(t)
            value = value.astype(np.int32) if made.dtype == "s32" else value
            self.b.add(g.Constant(made.name, made.name, self.b.constant(f"{made.name}.value",
                                                                        value.reshape(made.shape))))  # fmt: skip
            self.values[index] = made
        return self.values[index]

    def quantized(self, index: int) -> g.Tensor:
        """An activation that is u8 or s8."""
        x = self.activation(index)
        if x.dtype not in QUANTIZED:
            raise ModelError(
                f"'{x.name}' is {self.described(index).type}: operators compute in int8 or uint8 here; convert with "
                "full integer quantization (a representative dataset, the built-in int8 operators only), or import the "
                "float network from ONNX or torch with --calibrate"
            )
        return x

    def output(self, op: reader.Operator, i: int = 0, quantized: bool = True) -> g.Tensor:
        """The graph's tensor for output i, which the operator is about to produce."""
        if i >= len(op.outputs):
            raise ModelError(f"output {i} is missing")
        t = self.source.tensors[op.outputs[i]]
        if t.index in self.values:
            raise ModelError(f"'{t.name}' is produced twice")
        y = self.declare(t)
        if quantized and y.dtype not in QUANTIZED:
            raise ModelError(f"its output '{t.name}' is {t.type}: convert with full integer quantization")
        self.values[t.index] = y
        return y

    def temporary(self, like: g.Tensor, name: str, shape: Sequence[int]) -> g.Tensor:
        """A tensor that the file does not have, of another's quantization."""
        _check(name, shape)
        return self.b.like(like, name, shape)

    # What operators share

    def clamp(self, y: g.Tensor, activation: int) -> tuple[int, int]:
        """A fused activation as lo and hi in container units, as LiteRT computes them: zp + round(bound / scale)."""
        if activation not in _CLAMPS:
            raise ModelError(f"the fused activation {activation} has no form here")
        low, high = container_range(y)
        bounds = []
        for bound, default in zip(_CLAMPS[activation], (low, high), strict=True):
            steps = 0.0 if bound is None else float(np.float32(bound) / np.float32(y.scale))
            steps = math.copysign(math.floor(abs(steps) + 0.5), steps)  # halves away from zero
            bounds.append(default if bound is None else int(min(max(y.zero_point + steps, low), high)))
        return bounds[0], bounds[1]

    def reshape(self, x: g.Tensor, shape: Sequence[int], name: str) -> g.Tensor:
        """x under another shape; x itself where it has it."""
        if x.shape == tuple(shape):
            return x
        if math.prod(shape) != math.prod(x.shape):
            raise ModelError(f"{list(x.shape)} can't become {list(shape)}")
        y = self.temporary(x, name, shape)
        self.b.add(g.Reshape(y.name, x.name, y.name))
        return y

    def transpose(self, x: g.Tensor, axes: Sequence[int], name: str) -> g.Tensor:
        """x with its axes in another order; x itself where that is theirs."""
        if list(axes) == list(range(len(axes))):
            return x
        y = self.temporary(x, name, [x.shape[a] for a in axes])
        self.b.add(g.Transpose(y.name, x.name, y.name, tuple(axes)))
        return y

    def expand(self, x: g.Tensor, shape: Sequence[int], name: str) -> g.Tensor:
        """x broadcast to a shape by numpy's rule; x itself where it has it."""
        if len(x.shape) > len(shape):
            raise ModelError(f"{list(x.shape)} can't be broadcast to {list(shape)}")
        x = self.reshape(x, [1] * (len(shape) - len(x.shape)) + list(x.shape), f"{name}/rank")
        if x.shape == tuple(shape):
            return x
        if any(a not in (1, b) for a, b in zip(x.shape, shape, strict=True)):
            raise ModelError(f"{list(x.shape)} can't be broadcast to {list(shape)}")
        y = self.temporary(x, name, shape)
        self.b.add(g.Expand(y.name, x.name, y.name))
        return y

    def settle(self, y: g.Tensor, x: g.Tensor, make: Callable[[g.Tensor], None], lo: int, hi: int) -> None:
        """``make`` produces y where y has x's quantization and no clamp; else a tensor with x's, which a table then
        requantizes and clamps."""
        same = (x.dtype, x.scale, x.zero_point) == (y.dtype, y.scale, y.zero_point)
        if same and (y.dtype not in QUANTIZED or (lo, hi) == container_range(y)):
            make(y)
            return
        made = self.temporary(x, f"{y.name}/own", y.shape)
        make(made)
        self.b.lut(made, y, lambda v: v, "requantize", lo, hi)

    def moved(self, y: g.Tensor, x: g.Tensor, make: Callable[[g.Tensor, g.Tensor], None]) -> None:
        """``make(x, y)`` moves elements. LiteRT moves bytes, whatever the two quantizations say."""
        if x.dtype != y.dtype:
            raise ModelError(f"'{x.name}' is {x.dtype}, the output {y.dtype}")
        if (x.scale, x.zero_point) != (y.scale, y.zero_point):
            z = self.temporary(y, f"{y.name}/bytes", x.shape)
            self.reinterpret(x, z)
            x = z
        make(x, y)

    def reinterpret(self, x: g.Tensor, y: g.Tensor) -> None:
        """y has x's containers, and its own quantization."""
        table = self.b.constant(f"{y.name}.table", np.arange(256).astype(np.uint8))
        self.b.add(g.Lut(y.name, x.name, y.name, table, "reinterpret"))


def _check(name: str, shape: Sequence[int]) -> None:
    if not 0 < math.prod(shape) <= reader.LIMITS.elements or min(shape) < 1:
        raise ModelError(
            f"'{name}' of shape {list(shape)} is empty, or has more than {reader.LIMITS.elements} elements"
        )


def unsupported(_: Import, op: reader.Operator) -> None:
    """Refuses an operator."""
    if op.custom:
        raise ModelError("a custom operator: cut the model before it, and compute it after the inference")
    if op.name in _CONTROL_FLOW:
        raise ModelError("control flow can't be imported: convert the model with a fixed number of steps, unrolled")
    raise ModelError("has no form here: replace it in the model before conversion, or cut the model before it")


def same_padding(extents: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
                 ) -> tuple[int, int, int, int]:  # fmt: skip
    """TFLite's SAME: (top, left, bottom, right); an odd one goes to the end."""
    before, after = [], []
    for n, k, s, d in zip(extents, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before[0], before[1], after[0], after[1]


Importer = Callable[[Import, reader.Operator], None]
