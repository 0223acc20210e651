"""An ONNX graph becomes a module of aten operators, as torch.export writes them.

What does not depend on an input is computed here and now; a quantized constant stays what it is, so that weights keep
their integers. Nodes carry torch.export's meta (``val``, ``tensor_meta``) and ``source_name``, the ONNX tensor's name.
Every shape is known, and compared with the limits, before a value is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.ao.quantization.fx import _decomposed  # noqa: F401  declares torch.ops.quantized_decomposed
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from agent.errors import ModelError
from agent.validate import Limits
from models.intake.onnx.proto import Operator, Source

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = quantized.dequantize_per_channel.default
_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1)}
_FOLDED = 1 << 24  # elements that folding may make, beyond what the file holds
# torch's kernels and meta functions have no common root of errors.
_TORCH_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, OverflowError, AssertionError,
                 ZeroDivisionError, KeyError, AttributeError)  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """Of a tensor of integers: a scale and a zero point, or one of each for every index of ``axis``."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None
    dtype: torch.dtype

    @property
    def per_tensor(self) -> tuple[float, int, int, int, torch.dtype]:
        """What quantize_per_tensor takes after the tensor."""
        assert self.axis is None
        return (float(self.scale), int(self.zero_point), *_RANGES[self.dtype], self.dtype)


@dataclass(eq=False)
class Value:
    """What an ONNX name stands for.

    Either ``constant`` is set, or ``stored`` (a constant, the integers with their quantization, which stands for the
    real numbers), or ``node``. ``container``: the node gives integers that stand for real numbers by it.
    """

    fake: torch.Tensor
    node: Node | None = None
    constant: torch.Tensor | None = None
    stored: tuple[torch.Tensor, Quantization] | None = None
    container: Quantization | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.fake.shape)

    @property
    def rank(self) -> int:
        return len(self.fake.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.fake.dtype

    @property
    def known(self) -> bool:
        return self.node is None or self.constant is not None or self.stored is not None


Result = Value | Sequence[Value]


@dataclass(frozen=True)
class Rule:
    """How an operator is translated.

    moves: it moves, picks or bounds elements and computes nothing, so it means the same for integers as for what they
    stand for.
    """

    function: Callable[..., Result]
    moves: bool = False


@dataclass
class Registry:
    """The table of operators, by (domain, type)."""

    rules: dict[tuple[str, str], Rule] = field(default_factory=dict)

    def operator(self, *names: str, domain: str = "", moves: bool = False) -> Callable[..., Any]:
        """Adds a function(translator, operator, *inputs) -> value or values; an input left out is None."""

        def add(function: Callable[..., Result]) -> Callable[..., Result]:
            for name in names:
                self.rules[domain, name] = Rule(function, moves)
            return function

        return add


class Translator:
    """Translates one file. The operators' functions call its methods."""

    def __init__(self, source: Source, rules: Mapping[str, Rule], limits: Limits = Limits()) -> None:
        self.source, self.rules, self.limits = source, rules, limits
        self.opset = source.opset
        self.graph, self.root = Graph(), torch.nn.Module()
        self.mode = FakeTensorMode()
        self.values: dict[str, Value] = {}
        self.operator: Operator | None = None
        self.attributes = 0
        self.budget = _FOLDED + 4 * sum(c.numel() for c in source.constants.values())

    def run(self) -> GraphModule:
        """Raises ``ModelError`` with the node's name and type."""
        log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints a trace for each error that it raises
        before, log.disabled = log.disabled, True
        try:
            return self._run()
        finally:
            log.disabled = before

    def _run(self) -> GraphModule:
        for name, tensor in self.source.constants.items():
            self.values[name] = self.constant(tensor)
        for i in self.source.inputs:
            self.input(i.name, i.shape, i.dtype)
        for operator in self.source.operators:
            self.operator = operator
            self.translate(operator)
        self.operator = None
        outputs = []
        for name in self.source.outputs:
            if name not in self.values:
                raise ModelError(f"output '{name}' is never produced")
            outputs.append(self.node(self.values[name]))
        if not outputs:
            raise ModelError("the graph has no output")
        self.graph.output(tuple(outputs) if len(outputs) > 1 else outputs[0])
        self.graph.eliminate_dead_code()
        module = GraphModule(self.root, self.graph)
        module.eval()
        return module

    def input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        quantization = self.input_quantization(name) if dtype in (torch.uint8, torch.int8) else None
        given = torch.float32 if quantization else dtype
        node = self.graph.placeholder(f"input_{len(self.values)}")
        with self.mode:
            value = self.made(node, torch.empty(shape, dtype=given))
        if quantization:
            value = self.quantize(value, quantization)
        assert value.node is not None
        node.meta["source_name"] = value.node.meta["source_name"] = name
        self.values[name] = value

    def input_quantization(self, name: str) -> Quantization | None:
        """What the bytes of a graph's input stand for, by the first operator that reads them."""
        for operator in self.source.operators:
            for i in range(len(operator.inputs) - 2):
                scale, zero_point = (self.source.constants.get(n) for n in operator.inputs[i + 1 : i + 3])
                reads = operator.inputs[i] == name and (operator.kind.startswith("QLinear") or operator.kind in (
                    "DequantizeLinear", "QGemm"))  # fmt: skip
                if reads and scale is not None and zero_point is not None and scale.numel() == 1:
                    return self.quantization(self.constant(scale), self.constant(zero_point))
        return None

    def translate(self, operator: Operator) -> None:
        inputs: list[Value | None] = []
        for name in operator.inputs:
            if name and name not in self.values:
                raise ModelError(f"{operator}: '{name}' is read before it is produced")
            inputs.append(self.values[name] if name else None)
        while inputs and inputs[-1] is None:
            inputs.pop()
        rule = self.rules[operator.kind]
        container = next((v.container for v in inputs if v and v.container), None) if rule.moves else None
        try:
            if container:
                inputs = [self.meant(v, container) if v else None for v in inputs]
            made = self.moved(rule, operator, inputs) or rule.function(self, operator, *inputs)
        except ModelError:
            raise
        except _TORCH_ERRORS as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
            raise ModelError(f"{operator}: {reason}") from e
        results = [made] if isinstance(made, Value) else list(made)
        if len([n for n in operator.outputs if n]) > len(results):
            raise ModelError(f"{operator}: only its first {len(results)} output(s) have a translation")
        for name, value in zip(operator.outputs, results, strict=False):
            if not name:
                continue
            if name in self.values:
                raise ModelError(f"{operator}: '{name}' is produced twice")
            stored = self.quantize(value, container) if container else value
            self.values[name] = stored
            if stored.node is not None:
                stored.node.meta.setdefault("source_name", name)

    def moved(self, rule: Rule, operator: Operator, inputs: Sequence[Value | None]) -> Result | None:
        """A quantized constant whose elements are moved keeps its integers."""
        first = inputs[0] if inputs else None
        if not rule.moves or first is None or first.stored is None or any(v and v.dtype.is_floating_point
                                                                         for v in inputs[1:]):  # fmt: skip
            return None
        integers, q = first.stored
        if q.axis is not None or operator.kind in ("Pad", "Clip", "Relu", "MaxPool", "GlobalMaxPool"):
            return None
        made = rule.function(self, operator, self.constant(integers), *inputs[1:])
        return [self.stored(self.need(v, "result"), q) for v in ([made] if isinstance(made, Value) else made)]

    # Values

    def require(self, holds: bool, why: str) -> None:
        if not holds:
            raise ModelError(f"{self.operator}: {why}")

    def constant(self, tensor: torch.Tensor) -> Value:
        tensor = tensor.contiguous()
        return Value(tensor, constant=tensor)

    def stored(self, tensor: torch.Tensor, quantization: Quantization) -> Value:
        tensor = tensor.contiguous()
        with self.mode:
            return Value(torch.empty(tensor.shape), stored=(tensor, quantization))

    def known(self, value: Value | None) -> torch.Tensor | None:
        """The value, where it depends on no input."""
        if value is None:
            return None
        if value.constant is None and value.stored is not None:
            self.spend(value.fake.numel())
            value.constant = _real(*value.stored)
        return value.constant

    def need(self, value: Value | None, what: str) -> torch.Tensor:
        """The value of an input that must be constant."""
        tensor = self.known(value)
        if tensor is None:
            raise ModelError(f"{self.operator}: its {what} must not depend on the model's input; export the model "
                             "with fixed shapes")  # fmt: skip
        return tensor

    def integers(self, value: Value | None, what: str) -> list[int]:
        tensor = self.need(value, what)
        self.require(not tensor.is_floating_point() and tensor.numel() <= 4096, f"its {what} are no list of integers")
        return [int(v) for v in tensor.reshape(-1).tolist()]

    def scalar(self, value: Value) -> float | int | None:
        """The number, where the value is a constant of one element, of any rank."""
        if value.fake.numel() != 1 or (tensor := self.known(value)) is None or tensor.dtype is torch.bool:
            return None
        number: float | int = tensor.item()
        return number

    def spend(self, elements: int) -> None:
        self.budget -= elements
        self.require(self.budget >= 0, "constants of this size are not computed at import; fold them when exporting")

    def node(self, value: Value) -> Node:
        """The node that gives the value; for a constant, made now."""
        if value.node is not None:
            return value.node
        if value.stored is not None:
            tensor, q = value.stored
            weights = self.attribute(tensor)
            if q.axis is None:
                node = self.graph.call_function(DEQUANTIZE, (weights, *q.per_tensor))
            else:
                zero = q.zero_point.to(torch.int64)
                args = (weights, self.attribute(q.scale), self.attribute(zero), q.axis, *_RANGES[q.dtype], q.dtype)
                node = self.graph.call_function(DEQUANTIZE_CHANNEL, args)
            self.made(node, value.fake)
        else:
            assert value.constant is not None
            node = self.attribute(value.constant)
        value.node = node
        return node

    def attribute(self, tensor: torch.Tensor) -> Node:
        name = f"constant_{self.attributes}"
        self.attributes += 1
        self.root.register_buffer(name, tensor.detach().clone())
        node = self.graph.get_attr(name)
        self.made(node, self.mode.from_tensor(tensor))
        return node

    def made(self, node: Node, fake: torch.Tensor) -> Value:
        node.meta["val"] = fake
        node.meta["tensor_meta"] = _extract_tensor_metadata(fake)
        return Value(fake, node)

    def call(self, target: Any, *args: Any, fold: bool = True, **kwargs: Any) -> Value:
        """target(*args), computed at once where no argument depends on an input and ``fold`` allows it.

        Arguments are values, numbers, None, or lists of them.
        """
        operands: list[Value] = []

        def each(arg: Any, use: Callable[[Value], Any]) -> Any:
            if isinstance(arg, Value):
                return use(arg)
            return [each(a, use) for a in arg] if isinstance(arg, (list, tuple)) else arg

        def collect(value: Value) -> torch.Tensor:
            self.require(value.container is None, "it computes with integers whose scale is not said")
            operands.append(value)
            return value.fake if value.constant is not value.fake else self.mode.from_tensor(value.fake)

        fakes = [each(a, collect) for a in args], {k: each(v, collect) for k, v in kwargs.items()}
        with self.mode, torch.no_grad():
            fake = target(*fakes[0], **fakes[1])
        self.require(isinstance(fake, torch.Tensor), "it gives something else than a tensor")
        self.require(fake.numel() <= self.limits.elements and fake.ndim <= self.limits.rank,
                     f"its result, of shape {list(fake.shape)}, is too large")  # fmt: skip
        if fold and all(v.known for v in operands):
            self.spend(fake.numel())
            with torch.no_grad():
                return self.constant(target(*(each(a, self.known) for a in args),
                                            **{k: each(v, self.known) for k, v in kwargs.items()}))  # fmt: skip
        nodes = tuple(each(a, self.node) for a in args), {k: each(v, self.node) for k, v in kwargs.items()}
        return self.made(self.graph.call_function(target, *nodes), fake)

    # Quantization

    def quantization(self, scale: Value | None, zero_point: Value | None, axis: int | None = None,
                     rank: int = 0, dtype: torch.dtype = torch.uint8) -> Quantization:  # fmt: skip
        """From an operator's inputs; ``dtype`` where it has no zero point."""
        s = self.need(scale, "scale").to(torch.float32)
        z = self.known(zero_point)
        self.require(zero_point is None or z is not None, "its zero point must not depend on the model's input")
        z = torch.zeros(s.shape, dtype=dtype) if z is None else z
        self.require(z.dtype in _RANGES, f"{z.dtype} is no container that can be taken; quantize to 8 bits")
        self.require(z.numel() == s.numel(), "scale and zero point differ in their number")
        usable = torch.isfinite(s) & (s > 1e-30) & (s < 1e30)
        self.require(bool(usable.all()), f"a scale must lie between 1e-30 and 1e30, not {s.reshape(-1)[:4].tolist()}")
        if s.numel() == 1:
            return Quantization(s.reshape(()), z.reshape(()), None, z.dtype)
        axis = 1 if axis is None else axis
        self.require(s.ndim == 1 and -rank <= axis < rank, "blocks of weights with scales of their own are not taken")
        return Quantization(s, z, axis % rank, z.dtype)

    def quantize(self, value: Value, q: Quantization) -> Value:
        """The integers that stand for the value; a constant becomes integers at once."""
        constant = self.known(value)
        if constant is not None:
            self.spend(constant.numel())
            scale, zero_point = _across(q, constant.ndim)
            integers = torch.round(constant.float() / scale) + zero_point
            made = self.constant(integers.clamp(*_RANGES[q.dtype]).to(q.dtype))
            made.container = q
            return made
        self.require(q.axis is None, "an activation with a scale for each channel is not taken")
        self.require(q.dtype is not torch.int32, "an activation of 32 bits is not taken; quantize to 8 bits")
        made = self.call(QUANTIZE, value, *q.per_tensor)
        made.container = q
        return made

    def dequantize(self, value: Value, q: Quantization) -> Value:
        """The real numbers that integers stand for."""
        if value.constant is not None:
            self.require(value.dtype is q.dtype, f"{value.dtype} with a zero point of {q.dtype}")
            self.require(
                q.axis is None or q.dtype is not torch.int32 or value.rank == 1,
                "32 bits with a scale for each channel are taken for a bias only",
            )
            self.require(
                q.axis is None or value.shape[q.axis] == q.scale.numel(), "one scale for each channel is needed"
            )
            return self.stored(value.constant, q)
        self.require(q.axis is None, "an activation with a scale for each channel is not taken")
        self.require(value.container is not None, "it reads integers that no QuantizeLinear has made")
        self.require(value.dtype is q.dtype, f"it reads {value.dtype} with a zero point of {q.dtype}")
        return self.call(DEQUANTIZE, Value(value.fake, value.node), *q.per_tensor)

    def real(self, value: Value) -> Value:
        """The value itself, or, of integers, what they stand for."""
        return self.dequantize(value, value.container) if value.container else value

    def meant(self, value: Value, container: Quantization) -> Value:
        """What an input stands for among others that are integers of ``container``; indices stand for themselves."""
        if value.constant is not None and not value.container and value.dtype is container.dtype:
            return self.dequantize(value, container)
        return self.real(value)

    def still_quantized(self, value: Value, move: Callable[[Value], Value]) -> Value:
        """move(value), which moves elements or fills them in; a quantized activation is one again behind it."""
        node = value.node
        if value.known or node is None or node.target is not DEQUANTIZE:
            return move(value)
        args = node.args[1:]
        return self.call(DEQUANTIZE, self.call(QUANTIZE, move(value), *args), *args)


def _across(q: Quantization, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    if q.axis is None:
        return q.scale, q.zero_point.float()
    shape = [-1 if i == q.axis else 1 for i in range(rank)]
    return q.scale.reshape(shape), q.zero_point.float().reshape(shape)


def _real(integers: torch.Tensor, q: Quantization) -> torch.Tensor:
    scale, zero_point = _across(q, integers.ndim)
    if q.dtype is torch.int32:  # more bits than fp32 has: round once
        return ((integers.double() - zero_point.double()) * scale.double()).float()
    return (integers.float() - zero_point) * scale
