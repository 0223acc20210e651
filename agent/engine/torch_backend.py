"""The same operators in torch, bit for bit; and ``aten::`` nodes, in float.

Exactness: integer sums are computed by torch in double, where every product and every partial sum below 2^53 is
exact, so their order does not matter; a validated graph keeps them below 2^31. Requantization is done in float32, one
operation at a time, as docs/numerics.md says. This is the fallback, and a second opinion for the tests; it is not fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F

from agent import arithmetic
from agent import graph as g
from agent.engine.choice import Option
from agent.engine.segment import Array, StepInfo
from agent.errors import BackendError
from agent.validate import node_inputs, node_outputs, operator_name

Tensors = dict[str, torch.Tensor]
_CONTAINER = {"u8": torch.uint8, "s8": torch.int8}


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
        self._resolved = {n.name: _resolve(n) for n in nodes if isinstance(n, g.Aten)}
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            last |= dict.fromkeys(node_inputs(node), i)
        self._done = [[n for n, at in last.items() if at == i and n not in outputs] for i in range(len(nodes))]

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
                getattr(self, "_" + str(node.__struct_config__.tag))(node, values)
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
        values[name] = q.to(torch.int32).to(_CONTAINER[t.dtype])

    def _requantize(self, values: Tensors, node: g.Conv2d | g.Linear, acc: torch.Tensor) -> None:
        """acc: [..., oc], exact integers in double."""
        total = (acc + self._constants[node.bias].double()).to(torch.int32).float()
        self._store(values, node.output, total * self._constants[node.multiplier], node.lo, node.hi)

    def _conv2d(self, node: g.Conv2d, values: Tensors) -> None:
        x = self._value(values, node.input).permute(0, 3, 1, 2)
        top, left, bottom, right = node.padding
        x = F.pad(x, (left, right, top, bottom))
        weight = self._constants[node.weight].double().permute(0, 3, 1, 2)
        acc = F.conv2d(x, weight, None, node.stride, 0, node.dilation, node.groups)
        self._requantize(values, node, acc.permute(0, 2, 3, 1))

    def _linear(self, node: g.Linear, values: Tensors) -> None:
        x = self._value(values, node.input)
        self._requantize(values, node, x @ self._constants[node.weight].double().T)

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
        f1, f2 = arithmetic.add_factors(self._tensors[a], self._tensors[b], self._tensors[node.output])
        t = self._value(values, a).float() * torch.tensor(f1, dtype=torch.float32)
        u = self._value(values, b).float() * torch.tensor(f2, dtype=torch.float32)
        self._store(values, node.output, t + u, node.lo, node.hi)

    def _mul(self, node: g.Mul, values: Tensors) -> None:
        a, b = node.inputs
        m = arithmetic.product_multiplier(self._tensors[a], self._tensors[b], self._tensors[node.output])
        product = self._value(values, a) * self._value(values, b)
        self._store(values, node.output, product.float() * torch.tensor(m, dtype=torch.float32), node.lo, node.hi)

    def _canonical(self, values: Tensors, name: str) -> torch.Tensor:
        return values[name].long() + (128 if self._tensors[name].dtype == "s8" else 0)

    def _from_canonical(self, values: Tensors, name: str, q: torch.Tensor) -> None:
        t = self._tensors[name]
        values[name] = (q.to(torch.int32) - (128 if t.dtype == "s8" else 0)).to(_CONTAINER[t.dtype])

    def _lut(self, node: g.Lut, values: Tensors) -> None:
        table = self._constants[node.table]
        self._from_canonical(values, node.output, table[self._canonical(values, node.input)])

    def _concat(self, node: g.Concat, values: Tensors) -> None:
        out = self._tensors[node.output]
        if out.dtype == "f32":
            values[node.output] = torch.cat([values[name] for name in node.inputs], node.axis)
            return
        parts = []
        for name in node.inputs:
            table = arithmetic.requantize_table(self._tensors[name], out)
            q = self._canonical(values, name)
            parts.append(q if table is None else torch.from_numpy(table)[q].long())
        self._from_canonical(values, node.output, torch.cat(parts, node.axis))

    def _reshape(self, node: g.Reshape, values: Tensors) -> None:
        values[node.output] = values[node.input].reshape(self._tensors[node.output].shape)

    def _quantize(self, node: g.Quantize, values: Tensors) -> None:
        t = self._tensors[node.output]
        low, high = arithmetic.container_range(t)
        x = values[node.input] / torch.tensor(t.scale, dtype=torch.float32)
        self._store(values, node.output, torch.where(torch.isnan(x), 0.0, x), low, high)

    def _dequantize(self, node: g.Dequantize, values: Tensors) -> None:
        scale = torch.tensor(self._tensors[node.input].scale, dtype=torch.float32)
        values[node.output] = self._value(values, node.input).float() * scale

    def _softmax(self, node: g.Softmax, values: Tensors) -> None:
        q = values[node.input].long()
        e = self._constants[node.table].long()[q.amax(-1, keepdim=True) - q]
        values[node.output] = (e.double() / e.sum(-1, keepdim=True).double()).float()

    def _aten(self, node: g.Aten, values: Tensors) -> None:
        def bind(value: Any) -> Any:
            if isinstance(value, str) and value.startswith("$"):
                x = values[node.inputs[int(value[1:])]]
                return x.permute(0, 3, 1, 2) if x.ndim == 4 else x
            if isinstance(value, str) and value.startswith("#"):
                return self._constants[value[1:]]
            return [bind(v) for v in value] if isinstance(value, list) else value

        args = [bind(v) for v in msgspec.json.decode(node.args)]
        kwargs = {k: bind(v) for k, v in msgspec.json.decode(node.kwargs).items()}
        result = self._resolved[node.name](*args, **kwargs)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        for name, y in zip(node_outputs(node), results, strict=True):
            value = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
            if tuple(value.shape) != self._tensors[name].shape:
                raise BackendError(f"node '{node.name}': {node.target} gave shape {list(value.shape)} for '{name}'")
            values[name] = value.float().contiguous()


def _resolve(node: g.Aten) -> Callable[..., Any]:
    """The operator that a node names; only those that neither change their arguments nor alias into them."""
    name, _, overload = node.target.removeprefix("aten::").partition(".")
    packet = getattr(torch.ops.aten, name, None)
    operator = getattr(packet, overload or "default", None)
    if operator is None:
        raise BackendError(f"node '{node.name}': this torch has no operator {node.target}")
    if operator._schema.is_mutable:
        raise BackendError(f"node '{node.name}': {node.target} changes its arguments and may not run")
    return operator  # type: ignore[no-any-return]
