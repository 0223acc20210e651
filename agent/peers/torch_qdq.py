"""A graph as a torch module in the QDQ form of PT2E, which torchao's x86 road lowers to oneDNN's int8 kernels.

    module = to_torch(model, loose=loose_tensors(model.header.graph))

Activations are NCHW, and the u8 inputs are taken as they are. See ``agent.peers.forms`` for ``loose``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from numpy.typing import NDArray
from torch import fx

from agent import arithmetic
from agent import graph as g
from agent.errors import BackendError
from agent.modelfile import Model
from agent.peers import forms

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
_CONTAINER = {"u8": torch.uint8, "s8": torch.int8}
_FUNCTIONS = {
    "hardswish": aten.hardswish.default,
    "hardsigmoid": aten.hardsigmoid.default,
    "sigmoid": aten.sigmoid.default,
    "tanh": aten.tanh.default,
    "silu": aten.silu.default,
    "gelu": aten.gelu.default,
    "relu": aten.relu.default,
}


def to_torch(model: Model, loose: Collection[str] = ()) -> fx.GraphModule:
    """Takes the inputs and gives the outputs of the graph, in its order; 4-D ones as NCHW.

    Raises ``BackendError`` with the node's name for an operator that has no form here.
    """
    return _Export(model, loose).run()


class _Export:
    def __init__(self, model: Model, loose: Collection[str]) -> None:
        self.source, self.constants, self.loose = model.header.graph, model.constants, loose
        self.tensors = {t.name: t for t in self.source.tensors}
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        for name in self.source.inputs:
            self.values[name] = self.graph.placeholder(name)
        for node in self.source.nodes:
            g.method_for(self, "_", node)(node)
        self.graph.output(tuple(self.values[name] for name in self.source.outputs))
        return fx.GraphModule(self.root, self.graph).eval()

    def call(self, operator: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(operator, args)

    def constant(self, name: str, array: NDArray[Any]) -> fx.Node:
        """A buffer; dots are not allowed in its name."""
        name = name.replace(".", "_").replace("/", "_")
        self.root.register_buffer(name, torch.from_numpy(np.array(array)))
        return self.graph.get_attr(name)

    def quantization(self, name: str) -> tuple[float, int, int, int, torch.dtype]:
        t = self.tensors[name]
        return t.scale, t.zero_point, *arithmetic.container_range(t), _CONTAINER[t.dtype]

    def dequantized(self, name: str) -> fx.Node:
        """In float; each reader has a node of its own, as the patterns want it."""
        if name in self.loose or self.tensors[name].dtype == "f32":
            return self.values[name]
        return self.call(qd.dequantize_per_tensor.default, self.values[name], *self.quantization(name))

    def quantized(self, value: fx.Node, name: str, lo: int | None = None, hi: int | None = None) -> None:
        """Clamps where the container does not do it by itself, and quantizes."""
        t = self.tensors[name]
        clamp = forms.clamp(t, lo, hi)
        if clamp == forms.RELU:
            value = self.call(aten.relu.default, value)
        elif clamp is not None:
            value = self.call(aten.hardtanh.default, value, *clamp)
        if name not in self.loose:
            value = self.call(qd.quantize_per_tensor.default, value, *self.quantization(name))
        self.values[name] = value

    def weights(self, node: g.Conv2d | g.Linear, weight: NDArray[Any]) -> tuple[fx.Node, fx.Node]:
        scale = forms.weight_scale(node, self.tensors, self.constants)
        q = self.constant(f"{node.name}.weight", weight)
        s = self.constant(f"{node.name}.scale", scale)
        zp = self.constant(f"{node.name}.zero_point", np.zeros(len(scale), np.int64))
        bias = self.constants[node.bias].astype(np.float32) * (scale * np.float32(self.tensors[node.input].scale))
        return (
            self.call(qd.dequantize_per_channel.default, q, s, zp, 0, -128, 127, torch.int8),
            self.constant(f"{node.name}.bias", bias.astype(np.float32)),
        )

    def _conv2d(self, node: g.Conv2d) -> None:
        top, left, bottom, right = node.padding
        x = self.dequantized(node.input)
        if (top, left) != (bottom, right):
            raise BackendError(f"node '{node.name}': padding that is not the same on both sides has no torch form here")
        weight = np.ascontiguousarray(forms.symmetric_weight(node, self.constants).transpose(0, 3, 1, 2))
        y = self.call(aten.conv2d.default, x, *self.weights(node, weight), [*node.stride], [top, left],
                      [*node.dilation], node.groups)  # fmt: skip
        self.quantized(y, node.output, node.lo, node.hi)

    def _linear(self, node: g.Linear) -> None:
        x = self.dequantized(node.input)
        y = self.call(aten.linear.default, x, *self.weights(node, forms.symmetric_weight(node, self.constants)))
        self.quantized(y, node.output, node.lo, node.hi)

    def _max_pool2d(self, node: g.MaxPool2d) -> None:
        top, left, bottom, right = node.padding
        if (top, left) != (bottom, right):
            raise BackendError(f"node '{node.name}': padding that is not the same on both sides has no torch form here")
        y = self.call(aten.max_pool2d.default, self.dequantized(node.input), [*node.kernel], [*node.stride],
                      [top, left], [*node.dilation])  # fmt: skip
        self.quantized(y, node.output)

    def _avg_pool2d(self, node: g.AvgPool2d) -> None:
        x = self.dequantized(node.input)
        top, left, bottom, right = node.padding
        if node.kernel == self.tensors[node.input].shape[1:3] and not any(node.padding):
            y = self.call(aten.mean.dim, x, [2, 3], True)
        elif (top, left) == (bottom, right):
            y = self.call(aten.avg_pool2d.default, x, [*node.kernel], [*node.stride], [top, left], False,
                          node.count_include_pad)  # fmt: skip
        else:
            raise BackendError(f"node '{node.name}': padding that is not the same on both sides has no torch form here")
        self.quantized(y, node.output, node.lo, node.hi)

    def _add(self, node: g.Add) -> None:
        operator = aten.sub.Tensor if node.subtract else aten.add.Tensor
        y = self.call(operator, *(self.dequantized(name) for name in node.inputs))
        self.quantized(y, node.output, node.lo, node.hi)

    def _mul(self, node: g.Mul) -> None:
        y = self.call(aten.mul.Tensor, *(self.dequantized(name) for name in node.inputs))
        self.quantized(y, node.output, node.lo, node.hi)

    def _lut(self, node: g.Lut) -> None:
        if node.function not in _FUNCTIONS:
            raise BackendError(f"node '{node.name}': the function '{node.function}' of a table has no torch form here")
        self.quantized(self.call(_FUNCTIONS[node.function], self.dequantized(node.input)), node.output)

    def _concat(self, node: g.Concat) -> None:
        axis = forms.nchw_axis(node.axis, len(self.tensors[node.output].shape))
        y = self.call(aten.cat.default, [self.dequantized(name) for name in node.inputs], axis)
        self.quantized(y, node.output)

    def _reshape(self, node: g.Reshape) -> None:
        x, y = self.tensors[node.input], self.tensors[node.output]
        value = self.values[node.input]
        if len(x.shape) == 4 and x.shape[1] * x.shape[2] > 1:
            value = self.call(aten.permute.default, value, [0, 2, 3, 1])
        shape = [y.shape[i] for i in (0, 3, 1, 2)] if len(y.shape) == 4 else [*y.shape]
        self.values[node.output] = self.call(aten.reshape.default, value, shape)

    def _quantize(self, node: g.Quantize) -> None:
        self.quantized(self.values[node.input], node.output)

    def _dequantize(self, node: g.Dequantize) -> None:
        self.values[node.output] = self.dequantized(node.input)

    def _softmax(self, node: g.Softmax) -> None:
        self.values[node.output] = self.call(aten.softmax.int, self.dequantized(node.input), -1)

    def _aten(self, node: g.Aten) -> None:
        raise BackendError(f"node '{node.name}': {node.target} has no int8 form in torch")
