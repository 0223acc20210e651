"""Proves that a graph and its constants keep every rule, before any kernel sees them.

Checked: names, order of execution, shapes, dtypes, ranges, sizes, and that no accumulator can overflow.
Everything raises ``ModelError``, with the operator's name and what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent import graph as g
from agent.arithmetic import QUANTIZED, canonical_zero_point, container_range, product_multiplier
from agent.demand import demand
from agent.errors import ModelError

Constants = Mapping[str, NDArray[np.generic]]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How large a model file and its graph may be; errors name the limit that they broke. ``[model_limits]`` of
    int8d.toml.

    The last three bound what the model takes once it runs; see ``agent.demand.Demand``.
    """

    header: int = 32 << 20  # bytes of the file that are not arrays
    arrays: int = 100_000
    tensors: int = 20_000
    nodes: int = 20_000
    operands: int = 100_000  # activations that all nodes read
    rank: int = 8
    elements: int = 1 << 28  # of one activation
    window: int = 4096  # kernel, stride, dilation and padding
    activations: int = (2 << 30) - 1  # bytes: an int can count them
    weights: int = 4 << 30  # bytes
    operations: int = 1 << 42


def validate(graph: g.Graph, constants: Constants, limits: Limits = Limits()) -> None:
    """Raises ``ModelError`` where the graph breaks a rule."""
    _Validator(graph, constants, limits).run()


def node_inputs(node: g.Node) -> tuple[str, ...]:
    """The activations that a node reads."""
    if isinstance(node, (g.Add, g.Mul, g.Matmul, g.Concat, g.Aten)):
        return node.inputs
    return () if isinstance(node, g.Constant) else (node.input,)


def node_outputs(node: g.Node) -> tuple[str, ...]:
    """The activations that a node produces."""
    return node.outputs if isinstance(node, g.Aten) else (node.output,)


def operator_name(node: g.Node) -> str:
    """The operator's tag in the file: ``conv2d``, or the target of an ``aten`` node."""
    return node.target if isinstance(node, g.Aten) else str(node.__struct_config__.tag)


class _Validator:
    def __init__(self, graph: g.Graph, constants: Constants, limits: Limits) -> None:
        self.graph, self.constants, self.limits = graph, constants, limits
        self.tensors = {t.name: t for t in graph.tensors}
        self.where = "graph"

    def require(self, holds: bool, why: str) -> None:
        if not holds:
            raise ModelError(f"{self.where}: {why}")

    def run(self) -> None:
        graph, limits = self.graph, self.limits
        self.require(len(graph.tensors) <= limits.tensors, f"more than {limits.tensors} tensors")
        self.require(len(graph.nodes) <= limits.nodes, f"more than {limits.nodes} nodes")
        operands = sum(len(node_inputs(n)) for n in graph.nodes)
        self.require(operands <= limits.operands, f"nodes read more than {limits.operands} operands")
        self.require(len(self.tensors) == len(graph.tensors), "two tensors have the same name")
        self.require(len({n.name for n in graph.nodes}) == len(graph.nodes), "two nodes have the same name")
        self.require(len(graph.inputs) > 0 and len(graph.outputs) > 0, "it needs an input and an output")
        self.require(len(graph.inputs) <= 64 and len(graph.outputs) <= 64, "more than 64 inputs or outputs")
        self.require(len(set(graph.outputs)) == len(graph.outputs), "an output is named twice")
        for tensor in graph.tensors:
            self.where = f"tensor '{tensor.name}'"
            self.tensor(tensor)
        produced: set[str] = set()
        self.where = "graph inputs"
        for name in graph.inputs:
            self.require(name in self.tensors, f"there is no tensor '{name}'")
            self.require(name not in produced, f"'{name}' is named twice")
            produced.add(name)
        for node in graph.nodes:
            self.where = f"node '{node.name}' ({operator_name(node)})"
            for name in node_inputs(node):
                self.require(name in self.tensors, f"there is no tensor '{name}'")
                self.require(name in produced, f"'{name}' is read before it is produced")
            for name in node_outputs(node):
                self.require(name in self.tensors, f"there is no tensor '{name}'")
                self.require(name not in produced, f"'{name}' is produced twice")
            g.method_for(self, "node_", node)(node)
            produced.update(node_outputs(node))
        self.where = "graph outputs"
        for name in graph.outputs:
            self.require(name in produced, f"'{name}' is never produced")
        self.where = "graph"
        needed = demand(graph, self.constants)
        for field in fields(needed):
            needs, limit = getattr(needed, field.name), getattr(limits, field.name)
            unit = "" if field.name == "operations" else " bytes"
            self.require(needs <= limit, f"{field.name}: {needs:,}{unit} are needed, the limit is {limit:,}")

    def tensor(self, t: g.Tensor) -> None:
        self.require(0 < len(t.shape) <= self.limits.rank, f"the rank must lie in 1..{self.limits.rank}")
        self.require(all(0 < d <= self.limits.elements for d in t.shape), f"a bad extent in {list(t.shape)}")
        self.require(math.prod(t.shape) <= self.limits.elements, f"more than {self.limits.elements} elements")
        if t.dtype not in QUANTIZED:
            self.require(t.scale == 0 and t.zero_point == 0, f"{t.dtype} has no scale and no zero point")
            return
        self.scale(t.scale)
        low, high = container_range(t)
        self.require(low <= t.zero_point <= high, f"the zero point {t.zero_point} is outside {low}..{high}")

    def scale(self, scale: float) -> None:
        self.require(1e-30 < scale < 1e30, f"the scale {scale} must lie between 1e-30 and 1e30")
        self.require(float(np.float32(scale)) == scale, f"the scale {scale} is not an fp32 number")

    def activation(self, name: str, quantized: bool) -> g.Tensor:
        t = self.tensors[name]
        kinds = QUANTIZED if quantized else ("f32",)
        self.require(t.dtype in kinds, f"'{name}' is {t.dtype}, where {' or '.join(kinds)} is needed")
        return t

    def constant(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        self.require(name in self.constants, f"there is no constant '{name}'")
        array = self.constants[name]
        self.require(array.dtype == dtype, f"constant '{name}' is {array.dtype}, where {np.dtype(dtype)} is needed")
        self.require(array.shape == shape, f"constant '{name}' has shape {list(array.shape)}, needs {list(shape)}")
        return array

    def clamp(self, lo: int, hi: int, out: g.Tensor) -> None:
        low, high = container_range(out)
        self.require(low <= lo <= hi <= high, f"the clamp {lo}..{hi} must lie in {low}..{high}")

    def same_shape(self, *tensors: g.Tensor) -> None:
        shapes = {t.shape for t in tensors}
        self.require(len(shapes) == 1, f"shapes differ: {[list(t.shape) for t in tensors]}")

    def same_quantization(self, a: g.Tensor, b: g.Tensor) -> None:
        self.require(
            a.dtype == b.dtype and a.scale == b.scale and a.zero_point == b.zero_point,
            f"'{a.name}' and '{b.name}' must have the same dtype, scale and zero point",
        )

    def weights(self, node: g.Conv2d | g.Linear, shape: tuple[int, ...], x: g.Tensor, y: g.Tensor) -> None:
        self.require(node.weight in self.constants, f"there is no constant '{node.weight}'")
        kind: type[np.generic] = np.uint8 if self.constants[node.weight].dtype == np.uint8 else np.int8
        weight = self.constant(node.weight, kind, shape)
        least_zero_point, most_zero_point = (0, 255) if kind is np.uint8 else (0, 0)
        self.require(
            least_zero_point <= node.weight_zero_point <= most_zero_point,
            f"the weight's zero point {node.weight_zero_point} is outside {least_zero_point}..{most_zero_point}",
        )
        bias = self.constant(node.bias, np.int32, shape[:1])
        multiplier = self.constant(node.multiplier, np.float32, shape[:1])
        self.require(bool(np.all(np.isfinite(multiplier) & (multiplier > 0))), "multipliers must be finite and > 0")
        self.clamp(node.lo, node.hi, y)
        # numerics.md 3: a one-sided bound on the sum of each output channel proves that the true value fits int32.
        # A value v = q - zp lies in [-zp, 255 - zp]; padding adds v = 0, which lies inside.
        most_bias = max(abs(int(bias.min())), abs(int(bias.max())))
        if most_bias + 255 * 255 * math.prod(shape[1:]) < 2**31:  # whatever the weights are: no need to read them
            return
        least, most = -canonical_zero_point(x), 255 - canonical_zero_point(x)
        flat = weight.reshape(shape[0], -1).astype(np.int16) - np.int16(node.weight_zero_point)
        positive = np.maximum(flat, 0).sum(axis=1, dtype=np.int64)
        negative = np.minimum(flat, 0).sum(axis=1, dtype=np.int64)
        wide = bias.astype(np.int64)
        upper = wide + most * positive + least * negative
        lower = wide + least * positive + most * negative
        fits = (upper < 2**31) & (lower >= -(2**31))
        self.require(bool(fits.all()), f"the sum of output channel {int(np.argmin(fits))} can overflow int32")

    def window(
        self,
        x: g.Tensor,
        y: g.Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        self.require(len(x.shape) == 4 and len(y.shape) == 4, "input and output must be 4-D, NHWC")
        top = self.limits.window
        self.require(
            all(0 < v <= top for v in (*kernel, *stride, *dilation)), f"kernel, stride and dilation lie in 1..{top}"
        )
        self.require(all(0 <= v <= top for v in padding), f"padding lies in 0..{top}")
        self.require(x.shape[0] == y.shape[0], "the batch changes")
        for axis in range(2):
            room = x.shape[1 + axis] + padding[axis] + padding[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1
            self.require(room >= 0, "the window is larger than the padded map")
            expected = room // stride[axis] + 1
            self.require(
                y.shape[1 + axis] == expected, f"axis {1 + axis} of the output is {y.shape[1 + axis]}, not {expected}"
            )

    def pool_padding(self, node: g.MaxPool2d | g.AvgPool2d, dilation: tuple[int, int] = (1, 1)) -> None:
        for axis in range(2):
            pads = (node.padding[axis], node.padding[2 + axis])
            self.require(max(pads) < node.kernel[axis], "padding must be smaller than the kernel")
            self.require(dilation[axis] == 1 or sum(pads) == 0, "a dilated pool can't have padding")

    def node_conv2d(self, node: g.Conv2d) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.require(len(x.shape) == 4 and len(y.shape) == 4, "input and output must be 4-D, NHWC")
        ic, oc = x.shape[3], y.shape[3]
        self.require(
            node.groups > 0 and ic % node.groups == 0 and oc % node.groups == 0, "groups must divide the channels"
        )
        self.require(node.weight in self.constants, f"there is no constant '{node.weight}'")
        shape = self.constants[node.weight].shape
        self.require(len(shape) == 4, "the weight must be [oc, kh, kw, ic / groups]")
        self.weights(node, (oc, shape[1], shape[2], ic // node.groups), x, y)
        self.window(x, y, (shape[1], shape[2]), node.stride, node.padding, node.dilation)

    def node_linear(self, node: g.Linear) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.require(x.shape[:-1] == y.shape[:-1], "input and output may differ in their last axis only")
        self.weights(node, (y.shape[-1], x.shape[-1]), x, y)

    def node_matmul(self, node: g.Matmul) -> None:
        a, b = (self.activation(name, True) for name in node.inputs)
        y = self.activation(node.output, True)
        self.require(len(a.shape) >= 2 and len(a.shape) == len(b.shape), "inputs have the same rank, 2 or more")
        k, n = b.shape[-2:][:: -1 if node.transpose_b else 1]
        self.require(a.shape[-1] == k, f"the inner extents differ: {a.shape[-1]} and {k}")
        self.require(a.shape[:-2] == b.shape[:-2], "the leading axes differ")
        self.require(y.shape == (*a.shape[:-1], n), f"the output must have shape {[*a.shape[:-1], n]}")
        self.clamp(node.lo, node.hi, y)
        self.product(a, b, y)
        most = math.prod(max(zp, 255 - zp) for zp in (canonical_zero_point(a), canonical_zero_point(b)))
        self.require(most * k < 2**31, "the sum can overflow int32")

    def product(self, a: g.Tensor, b: g.Tensor, y: g.Tensor) -> None:
        multiplier = product_multiplier(a, b, y)
        self.require(0 < multiplier < float("inf"), f"the multiplier {multiplier} must be finite and > 0")

    def node_max_pool2d(self, node: g.MaxPool2d) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.window(x, y, node.kernel, node.stride, node.padding, node.dilation)
        self.pool_padding(node, node.dilation)
        self.same_quantization(x, y)
        self.require(x.shape[3] == y.shape[3], "a pool keeps its channels")

    def node_avg_pool2d(self, node: g.AvgPool2d) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.window(x, y, node.kernel, node.stride, node.padding)
        self.pool_padding(node)
        self.clamp(node.lo, node.hi, y)
        self.require(x.shape[3] == y.shape[3], "a pool keeps its channels")
        self.require(node.kernel[0] * node.kernel[1] < 2**22, "the window has 2^22 elements or more")

    def node_add(self, node: g.Add) -> None:
        a, b = (self.activation(name, True) for name in node.inputs)
        y = self.activation(node.output, True)
        self.same_shape(a, b, y)
        self.clamp(node.lo, node.hi, y)

    def node_mul(self, node: g.Mul) -> None:
        a, b = (self.activation(name, True) for name in node.inputs)
        y = self.activation(node.output, True)
        self.same_shape(a, y)
        gate = len(y.shape) == 4 and b.shape == (y.shape[0], 1, 1, y.shape[3])
        self.require(gate or b.shape == y.shape, "the second input must have the output's shape, or be [n, 1, 1, c]")
        self.clamp(node.lo, node.hi, y)
        self.product(a, b, y)

    def node_lut(self, node: g.Lut) -> None:
        self.same_shape(self.activation(node.input, True), self.activation(node.output, True))
        self.constant(node.table, np.uint8, (256,))

    def node_concat(self, node: g.Concat) -> None:
        y = self.tensors[node.output]
        inputs = [self.tensors[name] for name in node.inputs]
        for x in inputs:
            same = x.dtype == y.dtype or {x.dtype, y.dtype} <= set(QUANTIZED)
            self.require(same, f"'{x.name}' is {x.dtype}, the output {y.dtype}")
        self.require(len(inputs) > 0, "it needs an input")
        self.require(0 <= node.axis < len(y.shape), f"there is no axis {node.axis}")
        for x in inputs:
            self.require(len(x.shape) == len(y.shape), f"'{x.name}' has another rank than the output")
            expected = (*y.shape[: node.axis], *x.shape[node.axis : node.axis + 1], *y.shape[node.axis + 1 :])
            self.require(x.shape == expected, f"'{x.name}' differs from the output in more than axis {node.axis}")
        total = sum(x.shape[node.axis] for x in inputs)
        self.require(total == y.shape[node.axis], f"the inputs' extents sum to {total}, not {y.shape[node.axis]}")

    def node_transpose(self, node: g.Transpose) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        self.require(sorted(node.axes) == list(range(len(x.shape))), "axes must name each axis of the input once")
        self.require(y.shape == tuple(x.shape[a] for a in node.axes), "the output's shape does not follow from axes")
        self.same_quantization(x, y)

    def node_slice(self, node: g.Slice) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        self.ranks(x, y, node.begin, node.step)
        for extent, count, begin, step in zip(x.shape, y.shape, node.begin, node.step, strict=True):
            self.require(step != 0 and abs(step) < 2**31, "a step of 0")
            last = begin + (count - 1) * step
            self.require(0 <= begin < extent and 0 <= last < extent, f"{begin}..{last} leaves an axis of {extent}")
        self.same_quantization(x, y)

    def node_expand(self, node: g.Expand) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        self.ranks(x, y)
        fits = all(a in (1, b) for a, b in zip(x.shape, y.shape, strict=True))
        self.require(fits, f"{list(x.shape)} can't be expanded to {list(y.shape)}")
        self.same_quantization(x, y)

    def node_pad(self, node: g.Pad) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.ranks(x, y, node.before, node.after, node.interior)
        counts = (*node.before, *node.after, *node.interior)
        self.require(all(0 <= n <= self.limits.elements for n in counts), "a count is negative or too large")
        for axis, extent in enumerate(x.shape):
            total = node.before[axis] + extent + (extent - 1) * node.interior[axis] + node.after[axis]
            self.require(y.shape[axis] == total, f"axis {axis} of the output is {y.shape[axis]}, not {total}")
        low, high = container_range(y)
        self.require(low <= node.value <= high, f"the value {node.value} is outside {low}..{high}")
        self.same_quantization(x, y)

    def node_resize2d(self, node: g.Resize2d) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.require(len(x.shape) == 4 and len(y.shape) == 4, "input and output must be 4-D, NHWC")
        self.require(x.shape[0] == y.shape[0] and x.shape[3] == y.shape[3], "the batch or the channels change")
        for axis, name in ((1, node.rows), (2, node.columns)):
            table = self.constant(name, np.int32, (y.shape[axis], 3))
            ends, weights = table[:, :2], table[:, 2]
            inside = bool((ends >= 0).all() and (ends < x.shape[axis]).all())
            self.require(inside, f"'{name}' reads beyond axis {axis}")
            self.require(bool((weights >= 0).all() and (weights <= 2048).all()), f"a weight of '{name}' is not 0..2048")
        self.same_quantization(x, y)

    def node_argmax(self, node: g.ArgMax) -> None:
        x, y = self.activation(node.input, True), self.tensors[node.output]
        self.require(y.dtype == "s32", f"the output is {y.dtype}, where s32 is needed")
        self.require(y.shape == (x.shape[:-1] or (1,)), "the output has the input's shape without the last axis")

    def node_constant(self, node: g.Constant) -> None:
        y = self.tensors[node.output]
        kinds: dict[str, type[np.generic]] = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}
        self.constant(node.value, kinds[y.dtype], y.shape)

    def node_layer_norm(self, node: g.LayerNorm) -> None:
        x, y = self.activation(node.input, True), self.activation(node.output, True)
        self.same_shape(x, y)
        self.clamp(node.lo, node.hi, y)
        n = x.shape[-1]
        self.require(n <= 65_536, "the last axis has more than 65,536 elements")
        self.require(1e-30 < node.epsilon < 1e30, "epsilon must lie between 1e-30 and 1e30")
        least = node.epsilon * n * n / (x.scale * x.scale)
        self.require(least >= 1e-70, f"epsilon {node.epsilon} is too small beside the input's scale {x.scale}")
        for name in (node.gamma, node.beta):
            array = self.constant(name, np.float32, (n,))
            scaled = np.abs(array.astype(np.float64)) / y.scale
            self.require(bool((scaled < 1e30).all()), f"'{name}' has values that are not finite or too large")

    def ranks(self, x: g.Tensor, y: g.Tensor, *lists: tuple[int, ...]) -> None:
        self.require(len(x.shape) == len(y.shape), "the rank changes")
        self.require(all(len(values) == len(x.shape) for values in lists), "one value an axis is needed")

    def node_reshape(self, node: g.Reshape) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        self.require(math.prod(x.shape) == math.prod(y.shape), "the number of elements changes")
        self.same_quantization(x, y)

    def node_quantize(self, node: g.Quantize) -> None:
        self.same_shape(self.activation(node.input, False), self.activation(node.output, True))

    def node_dequantize(self, node: g.Dequantize) -> None:
        self.same_shape(self.activation(node.input, True), self.activation(node.output, False))

    def node_softmax(self, node: g.Softmax) -> None:
        y = self.tensors[node.output]
        self.same_shape(self.activation(node.input, True), self.activation(node.output, y.dtype in QUANTIZED))
        table = self.constant(node.table, np.int32, (256,))
        self.require(int(table[0]) > 0 and bool((table >= 0).all()), "table entries are 0 or more, the first more")

    def node_aten(self, node: g.Aten) -> None:
        self.require(node.target.startswith("aten::"), f"only aten:: operators may run, not '{node.target}'")
        self.require(len(node.outputs) > 0, "it needs an output")
        for name in (*node.inputs, *node.outputs):
            kind = self.tensors[name].dtype
            self.require(kind in ("f32", "s32"), f"'{name}' is {kind}, where f32 or s32 is needed")
        args, kwargs = msgspec.json.decode(node.args), msgspec.json.decode(node.kwargs)
        self.require(isinstance(args, list) and isinstance(kwargs, dict), "args is a list and kwargs an object")
        self.arguments(node, [args, list(kwargs.values())])

    def arguments(self, node: g.Aten, value: Any, depth: int = 0) -> None:
        """Every reference in the arguments of an ``aten`` node leads to a tensor."""
        self.require(depth < 8, "arguments are nested more than 8 deep")
        if isinstance(value, list):
            for v in value:
                self.arguments(node, v, depth + 1)
        elif isinstance(value, str) and value[:1] in ("$", "#"):
            name, _, kind = value[1:].partition(":")
            self.require(kind in ("", "bool"), f"'{value}' asks for '{kind}'; only bool can be asked for")
            if value[0] == "$":
                known = name.isascii() and name.isdecimal() and int(name[:6]) < len(node.inputs)
            else:
                kinds = (np.float32, np.int32, np.int64)
                known = name in self.constants and self.constants[name].dtype in kinds
            self.require(known, f"'{value}' is neither an input nor a constant of f32, s32 or s64")
        else:
            self.require(not isinstance(value, dict), "an object can't be an argument")
