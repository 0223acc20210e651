"""The same operators in torch, bit for bit; and ``aten::`` nodes, in float.

Exactness: integer sums are computed by torch in double, where every product and every partial sum below 2^53 is
exact, so their order does not matter; a validated graph keeps them below 2^31. Requantization is done in float32, one
operation at a time, as docs/numerics.md says. This is the fallback, and a second opinion for the tests; it is not fast.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from agent import arithmetic
from agent import graph as g
from agent.engine.aten import CONTAINER, AtenCall, Tensors
from agent.engine.choice import Option
from agent.engine.segment import Array, StepInfo
from agent.validate import node_inputs, operator_name


class TorchSegment:
    """Consecutive nodes, run one by one. See ``agent.engine.segment.Segment``."""

    backend = "torch"
    options: tuple[Option, ...] = ()
    isa = "torch"
    arena_bytes = 0

    def __init__(
        self,
        graph: g.Graph,
        constants: Mapping[str, Array],
        nodes: Sequence[g.Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._tensors = {t.name: t for t in graph.tensors}
        self._nodes = tuple(nodes)
        self._constants = {k: torch.from_numpy(np.array(v)) for k, v in constants.items()}
        self.weight_bytes = sum(v.nbytes for v in self._constants.values())
        self._resolved = {n.name: AtenCall(n, self._tensors, self._constants) for n in nodes if isinstance(n, g.Aten)}
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            last |= dict.fromkeys(node_inputs(node), i)
        self._done: list[list[str]] = [[] for _ in nodes]
        for name in last.keys() - set(outputs):
            self._done[last[name]].append(name)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Input arrays to output arrays."""
        return self.profile(arrays)[0]

    def profile(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, int]]:
        """As ``run``, and the nanoseconds of each node."""
        times: dict[str, int] = {}
        with torch.inference_mode():
            values: Tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in self.inputs}
            for node, done in zip(self._nodes, self._done, strict=True):
                start = time.perf_counter_ns()
                g.method_for(self, "_", node)(node, values)
                for name in done:
                    values.pop(name, None)
                times[node.name] = time.perf_counter_ns() - start
            return {name: np.ascontiguousarray(values[name].numpy()) for name in self.outputs}, times

    def steps(self) -> list[StepInfo]:
        """Every node runs as its torch function."""
        return [StepInfo(n.name, "torch", f"torch:{operator_name(n)}", 0) for n in self._nodes]

    def _value(self, values: Tensors, name: str) -> torch.Tensor:
        """v = q - zp, in double."""
        return values[name].double() - self._tensors[name].zero_point

    def _store(self, values: Tensors, name: str, scaled: torch.Tensor, lo: int, hi: int) -> None:
        """q = clamp(rint(scaled), lo - zp, hi - zp) + zp, from float32."""
        t = self._tensors[name]
        q = torch.round(scaled).clamp(lo - t.zero_point, hi - t.zero_point) + t.zero_point
        values[name] = q.to(torch.int32).to(CONTAINER[t.dtype])

    def _weight(self, node: g.Conv2d | g.Linear) -> torch.Tensor:
        return self._constants[node.weight].double() - node.weight_zero_point

    def _requantize(self, values: Tensors, node: g.Conv2d | g.Linear, acc: torch.Tensor) -> None:
        """acc: [..., oc], exact integers in double."""
        total = (acc + self._constants[node.bias].double()).to(torch.int32).float()
        self._store(values, node.output, total * self._constants[node.multiplier], node.lo, node.hi)

    def _conv2d(self, node: g.Conv2d, values: Tensors) -> None:
        x = self._value(values, node.input).permute(0, 3, 1, 2)
        top, left, bottom, right = node.padding
        x = F.pad(x, (left, right, top, bottom))
        weight = self._weight(node).permute(0, 3, 1, 2)
        acc = F.conv2d(x, weight, None, node.stride, 0, node.dilation, node.groups)
        self._requantize(values, node, acc.permute(0, 2, 3, 1))

    def _linear(self, node: g.Linear, values: Tensors) -> None:
        x = self._value(values, node.input)
        self._requantize(values, node, x @ self._weight(node).T)

    def _product(self, values: Tensors, node: g.Mul | g.Matmul, acc: torch.Tensor) -> None:
        a, b = node.inputs
        m = arithmetic.product_multiplier(self._tensors[a], self._tensors[b], self._tensors[node.output])
        scaled = acc.to(torch.int32).float() * torch.tensor(m, dtype=torch.float32)
        self._store(values, node.output, scaled, node.lo, node.hi)

    def _matmul(self, node: g.Matmul, values: Tensors) -> None:
        a, b = (self._value(values, name) for name in node.inputs)
        self._product(values, node, a @ (b.mT if node.transpose_b else b))

    def _max_pool2d(self, node: g.MaxPool2d, values: Tensors) -> None:
        x = values[node.input].double().permute(0, 3, 1, 2)
        top, left, bottom, right = node.padding
        x = F.pad(x, (left, right, top, bottom), value=-1e9)
        y = F.max_pool2d(x, node.kernel, node.stride, 0, node.dilation)
        values[node.output] = y.permute(0, 2, 3, 1).to(values[node.input].dtype)

    def _avg_pool2d(self, node: g.AvgPool2d, values: Tensors) -> None:
        source, out = self._tensors[node.input], self._tensors[node.output]
        top, left, bottom, right = node.padding

        def sums(x: torch.Tensor) -> torch.Tensor:
            x = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
            ones = torch.ones(x.shape[1], 1, *node.kernel, dtype=x.dtype)
            return F.conv2d(x, ones, None, node.stride, groups=x.shape[1]).permute(0, 2, 3, 1)

        total = sums(self._value(values, node.input))
        window = node.kernel[0] * node.kernel[1]
        multipliers = torch.from_numpy(arithmetic.average_multipliers(window, source, out))
        if node.count_include_pad:
            m = multipliers[window]
        else:
            m = multipliers[sums(torch.ones(1, *source.shape[1:3], 1, dtype=torch.float64)).long()]
        self._store(values, node.output, total.float() * m, node.lo, node.hi)

    def _add(self, node: g.Add, values: Tensors) -> None:
        a, b = node.inputs
        t = self._tensors
        f1, f2 = arithmetic.add_factors(t[a], t[b], t[node.output], node.subtract)
        first = self._value(values, a).float() * torch.tensor(f1, dtype=torch.float32)
        second = self._value(values, b).float() * torch.tensor(f2, dtype=torch.float32)
        self._store(values, node.output, first + second, node.lo, node.hi)

    def _mul(self, node: g.Mul, values: Tensors) -> None:
        a, b = node.inputs
        self._product(values, node, self._value(values, a) * self._value(values, b))

    def _canonical(self, values: Tensors, name: str) -> torch.Tensor:
        return values[name].long() + (128 if self._tensors[name].dtype == "s8" else 0)

    def _from_canonical(self, values: Tensors, name: str, q: torch.Tensor) -> None:
        t = self._tensors[name]
        values[name] = (q.to(torch.int32) - (128 if t.dtype == "s8" else 0)).to(CONTAINER[t.dtype])

    def _lut(self, node: g.Lut, values: Tensors) -> None:
        table = self._constants[node.table]
        self._from_canonical(values, node.output, table[self._canonical(values, node.input)])

    def _concat(self, node: g.Concat, values: Tensors) -> None:
        out = self._tensors[node.output]
        if out.dtype not in arithmetic.QUANTIZED:
            values[node.output] = torch.cat([values[name] for name in node.inputs], node.axis)
            return
        parts = []
        for name in node.inputs:
            table = arithmetic.requantize_table(self._tensors[name], out)
            q = self._canonical(values, name)
            parts.append(q if table is None else torch.from_numpy(table)[q].long())
        self._from_canonical(values, node.output, torch.cat(parts, node.axis))

    def _transpose(self, node: g.Transpose, values: Tensors) -> None:
        values[node.output] = values[node.input].permute(node.axes).contiguous()

    def _slice(self, node: g.Slice, values: Tensors) -> None:
        y = values[node.input]
        extents = self._tensors[node.output].shape
        for axis, (begin, step, count) in enumerate(zip(node.begin, node.step, extents, strict=True)):
            y = y.index_select(axis, begin + step * torch.arange(count))
        values[node.output] = y

    def _expand(self, node: g.Expand, values: Tensors) -> None:
        values[node.output] = values[node.input].expand(self._tensors[node.output].shape).contiguous()

    def _pad(self, node: g.Pad, values: Tensors) -> None:
        y = torch.full(self._tensors[node.output].shape, node.value, dtype=values[node.input].dtype)
        inside = y
        for axis, extent in enumerate(values[node.input].shape):
            step = node.interior[axis] + 1
            inside = inside.narrow(axis, node.before[axis], (extent - 1) * step + 1)
            inside = inside[(slice(None),) * axis + (slice(None, None, step),)]
        inside.copy_(values[node.input])
        values[node.output] = y

    def _resize2d(self, node: g.Resize2d, values: Tensors) -> None:
        q = values[node.input].long()
        for axis, name in ((2, node.columns), (1, node.rows)):
            low, high, weight = self._constants[name].long().T
            weight = weight.reshape(-1, *[1] * (3 - axis))
            q = (2048 - weight) * q.index_select(axis, low) + weight * q.index_select(axis, high)
        values[node.output] = ((q + 2**21) >> 22).to(values[node.input].dtype)

    def _argmax(self, node: g.ArgMax, values: Tensors) -> None:
        q = values[node.input]
        first = (q == q.amax(-1, keepdim=True)).int().argmax(-1)  # the first of equal ones
        values[node.output] = first.to(torch.int32).reshape(self._tensors[node.output].shape)

    def _constant(self, node: g.Constant, values: Tensors) -> None:
        values[node.output] = self._constants[node.value]

    def _layer_norm(self, node: g.LayerNorm, values: Tensors) -> None:
        source, out = self._tensors[node.input], self._tensors[node.output]
        gamma, beta = (self._constants[name].numpy() for name in (node.gamma, node.beta))
        factors = arithmetic.layer_norm_factors(node.epsilon, gamma, beta, source, out)
        v, n = self._value(values, node.input), source.shape[-1]
        s = v.sum(-1, keepdim=True)
        d = n * (v * v).sum(-1, keepdim=True) - s * s
        r = (1 / torch.sqrt(d + factors.epsilon)).float()
        t = (n * v - s).float() * r
        scaled = t * torch.from_numpy(factors.gamma) + torch.from_numpy(factors.beta)
        self._store(values, node.output, scaled, node.lo, node.hi)

    def _reshape(self, node: g.Reshape, values: Tensors) -> None:
        values[node.output] = values[node.input].reshape(self._tensors[node.output].shape)

    def _quantize(self, node: g.Quantize, values: Tensors) -> None:
        self._quantized(values, node.output, values[node.input])

    def _quantized(self, values: Tensors, name: str, x: torch.Tensor) -> None:
        t = self._tensors[name]
        x = x / torch.tensor(t.scale, dtype=torch.float32)
        self._store(values, name, torch.where(torch.isnan(x), 0.0, x), *arithmetic.container_range(t))

    def _dequantize(self, node: g.Dequantize, values: Tensors) -> None:
        scale = torch.tensor(self._tensors[node.input].scale, dtype=torch.float32)
        values[node.output] = self._value(values, node.input).float() * scale

    def _softmax(self, node: g.Softmax, values: Tensors) -> None:
        q = values[node.input].long()
        e = self._constants[node.table].long()[q.amax(-1, keepdim=True) - q]
        p = (e.double() / e.sum(-1, keepdim=True).double()).float()
        if self._tensors[node.output].dtype == "f32":
            values[node.output] = p
        else:
            self._quantized(values, node.output, p)

    def _aten(self, node: g.Aten, values: Tensors) -> None:
        values |= self._resolved[node.name](values, self._constants)
