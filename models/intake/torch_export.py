"""A PT2E-quantized module becomes a graph.

The walk goes over quantize nodes: each one ends a pattern (convolution, bias, clamp …) that has an int8 form. What
matches
no pattern stays float: an ``Aten`` node between ``Dequantize`` and ``Quantize``, so that any exported module runs.

Layout: torch's NCHW becomes NHWC. Flattening a map of more than one pixel then changes the order of features; the
linear layer that follows gets its columns permuted to match.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch.fx import GraphModule, Node

from agent import graph as g
from agent.arithmetic import softmax_table
from agent.errors import ModelError
from models.compress.quantize import CLAMPS, PRODUCTS, SUMS, UNARY, gated

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = quantized.dequantize_per_channel.default
SHAPES = {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.unsqueeze.default}
IDENTITIES = {aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default}


@dataclass(frozen=True)
class Value:
    """A tensor of the graph for a node of the module. ``order``: for a flattened map, torch's index of each element."""

    tensor: g.Tensor
    order: np.ndarray | None = None


def to_graph(module: GraphModule, input_name: str = "x", output_name: str = "logits") -> tuple[g.Graph, dict]:
    """The graph and its constants. The module has one input and one output; the output is f32.

    Raises ``ModelError`` with the node's name for what can't be brought over.
    """
    return _Intake(module, input_name, output_name).run()


def bias_and_multiplier(
    bias: np.ndarray | None, weight: np.ndarray, sx: float, sw: np.ndarray, sy: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight s8 [oc, …], bias s32 [oc], multiplier f32 [oc] by numerics.md 4 and 5.

    A channel of almost no weight has a scale so small that its bias would leave int32; such a channel's weights are
    rounded to a coarser scale, at which the bias fits.
    """
    oc = weight.shape[0]
    sx32, sw32 = np.float32(sx), sw.astype(np.float32)
    b = np.zeros(oc) if bias is None else bias.astype(np.float64)
    least = np.abs(b) / (np.float64(sx32) * 2.0**30)
    coarse = least > sw32
    if coarse.any():
        wider = np.where(coarse, least * 1.0001, sw32).astype(np.float32)
        ratio = (sw32.astype(np.float64) / wider).reshape(-1, *[1] * (weight.ndim - 1))
        weight = np.rint(weight * ratio).astype(np.int8)
        sw32 = wider
    product = sx32 * sw32
    q = np.rint(b / (np.float64(sx32) * sw32.astype(np.float64)))
    return weight, q.astype(np.int32), (product / np.float32(sy)).astype(np.float32)


class _Intake:
    def __init__(self, module: GraphModule, input_name: str, output_name: str) -> None:
        self.module, self.input_name, self.output_name = module, input_name, output_name
        self.tensors: list[g.Tensor] = []
        self.nodes: list[g.Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.quantized: dict[Node, Value] = {}  # by quantize node
        self.floats: dict[Node, Value] = {}  # by any node: its value as f32
        self.input: g.Tensor | None = None

    def run(self) -> tuple[g.Graph, dict[str, np.ndarray]]:
        output = None
        for node in self.module.graph.nodes:
            if node.target is QUANTIZE:
                self.quantized[node] = self.lower(node)
            elif node.op == "output":
                results = node.args[0]
                results = list(results) if isinstance(results, (tuple, list)) else [results]
                if len(results) != 1:
                    raise ModelError("the module must have one output")
                output = self.as_float(results[0], self.output_name)
        assert output is not None
        if self.input is None:
            raise ModelError("the module's input is never used")
        if output.order is not None:
            raise ModelError("the module's output is a flattened map; put a linear layer behind it, or keep it 4-D")
        graph = g.Graph(tuple(self.tensors), tuple(self.nodes), (self.input.name,), (output.tensor.name,))
        return graph, self.constants

    # Names and constants

    def tensor(self, node: Node, dtype: str, scale: float = 0.0, zero_point: int = 0, name: str = "") -> g.Tensor:
        shape = _shape(node)
        shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
        name = self.unique(name or _clean(node.name))
        t = g.Tensor(name, shape, dtype, float(np.float32(scale)), int(zero_point))
        self.tensors.append(t)
        return t

    def unique(self, name: str) -> str:
        taken, base, i = {t.name for t in self.tensors}, name, 1
        while name in taken:
            name, i = f"{base}_{i}", i + 1
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        assert name not in self.constants
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def attribute(self, node: Node) -> torch.Tensor:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach()

    def is_attribute(self, node: object) -> bool:
        return isinstance(node, Node) and node.op == "get_attr"

    # Values

    def source(self, node: Node) -> Value | None:
        """The quantized value behind a dequantize node."""
        if isinstance(node, Node) and node.target is DEQUANTIZE:
            return self.quantized.get(node.args[0])
        return None

    def as_float(self, node: Node, name: str = "") -> Value:
        """The node's value as an f32 tensor of the graph."""
        if node in self.floats:
            return self.floats[node]
        source = self.source(node)
        if source is not None:
            t = self.tensor(node, "f32", name=name)
            self.nodes.append(g.Dequantize(t.name, source.tensor.name, t.name))
            value = Value(t, source.order)
        elif node.op == "placeholder":
            if self.input is not None:
                raise ModelError("the module must have one input, which is quantized or used in float, not both")
            self.input = self.tensor(node, "f32", name=self.input_name)
            value = Value(self.input)
        elif node.op == "call_function" and node.target in (aten.softmax.int, aten._softmax.default):
            value = self.softmax(node, name) or self.aten(node, name)
        elif node.op == "call_function":
            value = self.aten(node, name)
        else:
            raise ModelError(f"node '{node.name}': a {node.op} has no form in the graph")
        self.floats[node] = value
        return value

    def softmax(self, node: Node, name: str) -> Value | None:
        source = self.source(node.args[0])
        rank = len(_shape(node))
        if source is None or source.order is not None or rank == 4 or node.args[1] % rank != rank - 1:
            return None
        t = self.tensor(node, "f32", name=name)
        table = self.constant(f"{t.name}.table", softmax_table(source.tensor.scale))
        self.nodes.append(g.Softmax(t.name, source.tensor.name, t.name, table))
        return Value(t)

    def aten(self, node: Node, name: str = "") -> Value:
        """A float operator as an ``Aten`` node."""
        target = node.target
        if target is operator.getitem:
            raise ModelError(f"node '{node.name}': an operator of several outputs has no form in the graph yet")
        if not str(getattr(target, "_schema", "")).startswith("aten::"):
            raise ModelError(f"node '{node.name}': {target} is not an aten operator; it has no form in the graph")
        if target._schema.is_mutable:  # exported modules are functional but for names like relu_
            functional = getattr(aten, target._schema.name.removeprefix("aten::").rstrip("_"), None)
            target = getattr(functional, target._overloadname, None)
            if target is None:
                raise ModelError(f"node '{node.name}': {node.target} changes its argument")
        inputs: list[str] = []

        def encode(arg: Any) -> Any:
            if isinstance(arg, Node):
                if self.is_attribute(arg):
                    array = self.attribute(arg).numpy()
                    return "#" + self.constant(f"{_clean(node.name)}.{len(self.constants)}", array)
                if arg.target is DEQUANTIZE_CHANNEL:
                    weight, scale = self.attribute(arg.args[0]), self.attribute(arg.args[1])
                    value = weight.float() * scale.reshape(-1, *[1] * (weight.ndim - 1))
                    return "#" + self.constant(f"{_clean(node.name)}.{len(self.constants)}", value.numpy())
                value = self.as_float(arg)
                if value.order is not None:
                    raise ModelError(f"node '{node.name}': {target} reads a flattened map, whose order differs here")
                inputs.append(value.tensor.name)
                return f"${len(inputs) - 1}"
            if isinstance(arg, (list, tuple)):
                return [encode(a) for a in arg]
            if arg is None or isinstance(arg, (bool, int, float)):
                return arg
            raise ModelError(f"node '{node.name}': argument {arg!r} of {target} has no form in the graph")

        args = [encode(a) for a in node.args]
        kwargs = {k: encode(v) for k, v in node.kwargs.items() if v is not None}
        t = self.tensor(node, "f32", name=name)
        overload = target._overloadname
        full = target._schema.name + ("" if overload in ("", "default") else f".{overload}")
        self.nodes.append(g.Aten(t.name, full, tuple(inputs), (t.name,), *(
            msgspec.Raw(msgspec.json.encode(x)) for x in (args, kwargs))))  # fmt: skip
        return Value(t)

    # Patterns that end in a quantize node

    def lower(self, node: Node) -> Value:
        source, scale, zero_point, low, high, _ = node.args
        assert (low, high) == (0, 255), "models.compress.quantize makes u8 activations"
        if source.op == "placeholder" and self.input is None:
            self.input = self.tensor(source, "u8", scale, zero_point, self.input_name)
            return Value(self.input)
        lo, hi, inner = low, high, source
        if source.target in CLAMPS and self.source(source.args[0]) is None and len(source.args[0].users) == 1:
            inner = source.args[0]
            least, most = _bounds(source)
            lo = int(np.clip(np.rint(np.float32(least) / np.float32(scale)) + zero_point, low, high))
            hi = int(np.clip(np.rint(np.float32(most) / np.float32(scale)) + zero_point, low, high))
        handler = self.handler(inner)
        made = handler(inner, node, lo, hi) if handler else None
        if made is None:
            x = self.as_float(source)
            y = self.output(source, node)
            self.nodes.append(g.Quantize(y.name, x.tensor.name, y.name))
            return Value(y, x.order)
        return made

    def handler(self, node: Node) -> Callable[[Node, Node, int, int], Value | None] | None:
        target = node.target
        if target is aten.conv2d.default:
            return self.conv2d
        if target is aten.linear.default:
            return self.linear
        if target in SUMS:
            return self.add
        if target in PRODUCTS:
            return self.mul
        if target is aten.max_pool2d.default:
            return self.max_pool2d
        if target in (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim):
            return self.average
        if target is aten.cat.default:
            return self.concat
        if target in UNARY | CLAMPS:
            return self.table
        if target in SHAPES | IDENTITIES:
            return self.move
        return None

    def output(self, node: Node, quantize: Node) -> g.Tensor:
        return self.tensor(node, "u8", quantize.args[1], quantize.args[2])

    def weighted(self, node: Node, x: Value, quantize: Node, lo: int, hi: int) -> tuple[g.Tensor, dict] | None:
        weight_node = node.args[1]
        if not (isinstance(weight_node, Node) and weight_node.target is DEQUANTIZE_CHANNEL):
            return None
        bias_node = node.args[2] if len(node.args) > 2 else None
        if bias_node is not None and not self.is_attribute(bias_node):
            return None
        weight = self.attribute(weight_node.args[0]).numpy()
        scales = self.attribute(weight_node.args[1]).numpy()
        if node.target is aten.conv2d.default:
            weight = weight.transpose(0, 2, 3, 1)
        elif x.order is not None:
            weight = weight[:, x.order]
        bias = None if bias_node is None else self.attribute(bias_node).numpy()
        y = self.output(node, quantize)
        weight, bias, multiplier = bias_and_multiplier(bias, weight, x.tensor.scale, scales, y.scale)
        names = {
            "weight": self.constant(f"{y.name}.weight", weight),
            "bias": self.constant(f"{y.name}.bias", bias),
            "multiplier": self.constant(f"{y.name}.multiplier", multiplier),
        }
        return y, names | {"lo": lo, "hi": hi}

    def conv2d(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        x = self.source(node.args[0])
        args = [*node.args, *(None, [1, 1], [0, 0], [1, 1], 1)[len(node.args) - 2 :]]
        stride, padding, dilation, groups = args[3:7]
        if x is None or isinstance(padding, str):
            return None
        made = self.weighted(node, x, quantize, lo, hi)
        if made is None:
            return None
        y, common = made
        pad = tuple(_pair(padding)) * 2
        self.nodes.append(g.Conv2d(y.name, x.tensor.name, y.name, **common, stride=_pair(stride), padding=pad,
                                   dilation=_pair(dilation), groups=groups))  # fmt: skip
        return Value(y)

    def linear(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        x = self.source(node.args[0])
        made = self.weighted(node, x, quantize, lo, hi) if x is not None and len(x.tensor.shape) != 4 else None
        if made is None:
            return None
        y, common = made
        self.nodes.append(g.Linear(y.name, x.tensor.name, y.name, **common))
        return Value(y)

    def add(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        a, b = (self.source(arg) if isinstance(arg, Node) else None for arg in node.args[:2])
        if a is None or b is None or a.tensor.shape != b.tensor.shape or node.kwargs:
            return None
        if not _same_order(a.order, b.order):
            return None
        y = self.output(node, quantize)
        self.nodes.append(g.Add(y.name, (a.tensor.name, b.tensor.name), y.name, lo, hi))
        return Value(y, a.order)

    def mul(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        operands = gated(node)
        a, b = (self.source(arg) for arg in operands) if operands else (None, None)
        if a is None or b is None or not _same_order(a.order, b.order):
            return None
        y = self.output(node, quantize)
        self.nodes.append(g.Mul(y.name, (a.tensor.name, b.tensor.name), y.name, lo, hi))
        return Value(y, a.order)

    def max_pool2d(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        x = self.source(node.args[0])
        args = [*node.args, *([], [0, 0], [1, 1], False)[len(node.args) - 2 :]]
        kernel = _pair(args[1])
        stride, padding, dilation = _pair(args[2] or kernel), _pair(args[3]), _pair(args[4])
        same = x is not None and (x.tensor.scale, x.tensor.zero_point) == (float(np.float32(quantize.args[1])),
                                                                          quantize.args[2])  # fmt: skip
        if not same or (lo, hi) != (0, 255):
            return None
        y = self.output(node, quantize)
        pad = _ceil_padding(x.tensor, y, kernel, stride, padding, dilation)
        self.nodes.append(g.MaxPool2d(y.name, x.tensor.name, y.name, kernel, stride, pad, dilation))
        return Value(y)

    def average(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        x = self.source(node.args[0])
        if x is None or len(x.tensor.shape) != 4:
            return None
        size = x.tensor.shape[1:3]
        flat = False
        kernel, stride, pad, count = size, (1, 1), (0, 0, 0, 0), True
        if node.target is aten.mean.dim:
            if sorted(d % 4 for d in node.args[1]) != [2, 3]:
                return None
            flat = not (len(node.args) > 2 and node.args[2])
        elif node.target is aten.adaptive_avg_pool2d.default:
            out = _pair(node.args[1])
            if any(n % o for n, o in zip(size, out, strict=True)):
                return None
            kernel = stride = tuple(n // o for n, o in zip(size, out, strict=True))
        else:
            args = [*node.args, *([], [0, 0], False, True, None)[len(node.args) - 2 :]]
            kernel = _pair(args[1])
            stride, count = _pair(args[2] or kernel), args[5]
            pad = tuple(_pair(args[3])) * 2
            if args[4] or args[6] is not None:  # ceil_mode and divisor_override
                return None
        y = self.output(node, quantize)
        pooled = y
        if flat:
            pooled = g.Tensor(self.unique(y.name + ".map"), (y.shape[0], 1, 1, y.shape[1]), "u8", y.scale, y.zero_point)
            self.tensors.append(pooled)
        self.nodes.append(g.AvgPool2d(pooled.name, x.tensor.name, pooled.name, kernel, stride, lo, hi, pad, count))
        if flat:
            self.nodes.append(g.Reshape(y.name, pooled.name, y.name))
        return Value(y)

    def concat(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        inputs = [self.source(arg) for arg in node.args[0]]
        rank = len(_shape(node))
        if any(x is None or x.order is not None for x in inputs) or (lo, hi) != (0, 255):
            return None
        axis = (node.args[1] if len(node.args) > 1 else 0) % rank
        y = self.output(node, quantize)
        axis = (0, 3, 1, 2)[axis] if rank == 4 else axis
        self.nodes.append(g.Concat(y.name, tuple(x.tensor.name for x in inputs if x), y.name, axis))
        return Value(y)

    def table(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        """A unary function of a quantized value, evaluated in double for each of the 256 containers."""
        x = self.source(node.args[0])
        if x is None:
            return None
        y = self.output(node, quantize)
        values = (torch.arange(256, dtype=torch.float64) - x.tensor.zero_point) * x.tensor.scale
        target = node.target
        if target._schema.is_mutable:
            target = getattr(
                getattr(aten, target._schema.name.removeprefix("aten::").rstrip("_")), target._overloadname
            )
        result = target(values, *node.args[1:], **node.kwargs).numpy()
        q = np.clip(np.rint(result / np.float64(y.scale)) + y.zero_point, lo, hi).astype(np.uint8)
        function = target._schema.name.removeprefix("aten::")
        self.nodes.append(g.Lut(y.name, x.tensor.name, y.name, self.constant(f"{y.name}.table", q), function))
        return Value(y, x.order)

    def move(self, node: Node, quantize: Node, lo: int, hi: int) -> Value | None:
        x = self.source(node.args[0])
        if x is None or (lo, hi) != (0, 255):
            return None
        if (x.tensor.scale, x.tensor.zero_point) != (float(np.float32(quantize.args[1])), quantize.args[2]):
            return None
        if node.target in IDENTITIES:
            return x
        order = x.order
        shape = x.tensor.shape
        target_shape = _shape(node)
        if len(shape) == 4 and len(target_shape) != 4:
            n, h, w, c = shape
            if h * w > 1:
                if target_shape != (n, h * w * c):
                    return None  # only a whole flatten has a simple order
                order = np.arange(c * h * w).reshape(c, h, w).transpose(1, 2, 0).ravel()
        elif len(target_shape) == 4:
            # Features become a map of one pixel; a map stays the map that it is.
            features = len(shape) != 4
            if features and (order is not None or target_shape[2:] != (1, 1)):
                return None
            if not features and target_shape[1:] != (shape[3], *shape[1:3]):
                return None
        y = self.output(node, quantize)
        self.nodes.append(g.Reshape(y.name, x.tensor.name, y.name))
        return Value(y, order)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _clean(name: str) -> str:
    return name.removesuffix("_default")


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


def _bounds(node: Node) -> tuple[float, float]:
    """The clamp of an activation, in real values."""
    if node.target in (aten.relu.default, aten.relu_.default):
        return 0.0, float("inf")
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    default = (-1.0, 1.0) if "hardtanh" in str(node.target) else (None, None)
    low, high = [*node.args[1:3], *default[len(node.args) - 1 :]][:2]
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def _ceil_padding(
    x: g.Tensor, y: g.Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """ceil_mode is padding at the end, exactly as much as the last window needs."""
    ends = []
    for axis in range(2):
        needed = (y.shape[1 + axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        ends.append(max(padding[axis], needed - x.shape[1 + axis] - padding[axis]))
    return (*padding, *ends)


def _same_order(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None) == (b is None) and (a is None or bool(np.array_equal(a, b)))
