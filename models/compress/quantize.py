"""Post-training quantization with torchao's PT2E: u8 activations per tensor, s8 weights per output channel.

Every activation between two operators is quantized, also between a convolution and the addition that follows it, as
docs/numerics.md wants it. Only what becomes one table is one: an expression of pointwise operators of one activation.
Batch-norms are folded into their convolutions by ``prepare_pt2e``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from models.compress import ranges
from models.compress.observers import RuleObserver, observed
from models.compress.prepare import prepare
from models.intake.aten.operators import (
    AVERAGES,
    CLAMPS,
    CONCATS,
    LINEAR,
    MATMULS,
    MAX_POOLS,
    NORMS,
    PADS,
    POINTWISE,
    PRODUCTS,
    QUOTIENTS,
    RESIZES,
    SOFTMAX,
    SPLITS,
    SUMS,
    TRANSPOSED,
    UNARY,
    WEIGHTED,
    argument,
    aten,
    dtypes_of,
    is_move,
    shape_of,
)

Sample = torch.Tensor | Sequence[torch.Tensor]


class LogitsObserver(MinMaxObserver):
    """Of a softmax's input: what lies further than ``REACH`` below every row's maximum gets no attention anyway.

    A mask's -100 would otherwise take all of the range.
    """

    REACH = 10.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("least_row", torch.tensor(float("inf")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Looks at a batch; rows lie along the last axis."""
        self.least_row = torch.minimum(self.least_row, x.detach().amax(-1).min())
        super().forward(x)
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        least = torch.maximum(self.min_val, self.least_row - self.REACH)
        scale, zero_point = self._calculate_qparams(least, self.max_val)
        return scale, zero_point


def _activation(observer: Any) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observer.with_args(eps=2.0**-16),
    )  # fmt: skip


def _weight(axis: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=axis,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2.0**-20),
    )  # fmt: skip


ACTIVATION = _activation(RuleObserver)
LOGITS = _activation(LogitsObserver)
WEIGHT, WEIGHT_TRANSPOSED = _weight(0), _weight(1)
# They keep values, or stay between them, so that input and output share one quantization.
SHARED = MAX_POOLS | RESIZES


class Int8Quantizer(Quantizer):
    """Annotates what has an int8 form (docs/coverage.md); the rest stays float."""

    def annotate(self, model: GraphModule) -> GraphModule:
        self.inside = _inside_tables(model)
        for node in model.graph.nodes:
            if node.op == "call_function" and "quantization_annotation" not in node.meta and _is_float(node):
                self._node(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing beyond what ``annotate`` does."""

    def _node(self, node: Node) -> None:
        target = node.target
        if target in WEIGHTED and _has_constant_weight(node):
            weight = WEIGHT_TRANSPOSED if target in TRANSPOSED and argument(node, 6, "groups", 1) == 1 else WEIGHT
            if target in TRANSPOSED and argument(node, 6, "groups", 1) != 1:
                return
            self._annotate(node, {node.args[0]: self._edge(node.args[0]), node.args[1]: weight})
        elif target in LINEAR | MATMULS and len(shape_of(node.args[0])) > 1 and len(shape_of(node.args[1])) > 1:
            self._annotate(node, self._edges(node.args[:2]))
        elif node in self.inside:
            self._expression(node)
        elif target in SUMS | PRODUCTS and _is_binary(node):
            self._annotate(node, self._edges(node.args[:2]))
        elif target in AVERAGES:
            self._annotate(node, self._edges(node.args[:1]), fuse=False)
        elif target in CONCATS:
            self._annotate(node, self._edges(node.args[0]), fuse=False)
        elif target in NORMS:
            self._annotate(node, self._edges(node.args[:1]), fuse=False)
        elif target in SOFTMAX:
            # The probabilities that a model returns stay float; attention's are quantized.
            read = any(u.op != "output" for u in node.users)
            self._mark(node, {node.args[0]: self._edge(node.args[0])}, ACTIVATION if read else None)
        elif target is aten.argmax.default:
            self._mark(node, self._edges(node.args[:1]), None)
        elif is_move(node) or target in SHARED:
            self._move(node)

    def _move(self, node: Node) -> None:
        if node.target in PADS and not _frames_with_zero(node):
            return
        source, reader = node.args[0], node
        if source.target in SPLITS and not isinstance(source.args[0], Node):
            return
        if node.target not in SHARED and source.target in SPLITS:  # an output of a split
            source, reader = source.args[0], source
            if "quantization_annotation" not in reader.meta:
                self._mark(reader, {source: self._edge(source)}, None)
        if source.op == "get_attr":
            return
        spec = self._edge(source)
        shared = SharedQuantizationSpec((source, reader))
        self._mark(node, {} if reader is not node else {source: spec}, shared)

    def _expression(self, node: Node) -> None:
        """The last of an expression's nodes is quantized, and what the first read."""
        root, last = self.inside[node]
        inputs = {a: self._edge(a) for a in node.all_input_nodes if a is root}
        self._mark(node, inputs, self._output(node) if last else None)

    def _annotate(self, node: Node, inputs: dict[Node, QuantizationSpec], fuse: bool = True) -> None:
        users = list(node.users)
        scaled = users[0] if fuse and len(users) == 1 and _scales(node, users[0]) else None
        if scaled is not None:  # a number goes into the multiplier
            self._mark(node, inputs, None)
            node, inputs, users = scaled, {}, list(scaled.users)
        # The clamp goes into the requantization: no quantization between the operator and it.
        if fuse and len(users) == 1 and users[0].target in CLAMPS:
            self._mark(node, inputs, None)
            node, inputs = users[0], {}
        self._mark(node, inputs, self._output(node))

    def _mark(self, node: Node, inputs: dict[Node, Any], output: Any) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)

    def _edges(self, nodes: Iterable[Any]) -> dict[Node, QuantizationSpec]:
        return {n: self._edge(n) for n in nodes if isinstance(n, Node)}

    def _edge(self, node: Node) -> QuantizationSpec:
        return self._output(node)

    def _output(self, node: Node) -> QuantizationSpec:
        """How a node's result is quantized: as its reader, a softmax, would have it, or as any."""
        return LOGITS if _is_logits(node) else ACTIVATION


def _is_float(node: Node) -> bool:
    return all(t is torch.float32 for t in dtypes_of(node)) or node.target is aten.argmax.default


def _is_logits(node: Node) -> bool:
    """Whether only softmaxes over the last axis read the node, through reshapes at most."""
    left, found = list(node.users), False
    while left:
        user = left.pop()
        if user.target in SOFTMAX and user.args[1] in (-1, len(shape_of(user)) - 1):
            found = True
        elif is_move(user) and shape_of(user)[-1:] == shape_of(node)[-1:]:
            left.extend(user.users)
        else:
            return False
    return found


def _has_constant_weight(node: Node) -> bool:
    return node.args[1].op == "get_attr"


def _is_binary(node: Node) -> bool:
    floats = [a for a in node.args[:2] if isinstance(a, Node) and _is_float(a)]
    return len(floats) == 2 and argument(node, 2, "alpha", 1) == 1


def _scales(node: Node, user: Node) -> bool:
    """Whether ``user`` multiplies the node by a positive number."""
    if user.target not in PRODUCTS | QUOTIENTS or user.args[0] is not node:
        return False
    return node.target in WEIGHTED | MATMULS and isinstance(user.args[1], (int, float)) and user.args[1] > 0


def _frames_with_zero(node: Node) -> bool:
    constant = node.target is not aten.pad.default or argument(node, 2, "mode", "constant") == "constant"
    value = argument(node, 3 if node.target is aten.pad.default else 2, "value") or 0
    return constant and value == 0


def _inside_tables(model: GraphModule) -> dict[Node, tuple[Node, bool]]:
    """Nodes of expressions that depend on one activation: that activation, and whether the node ends the expression.

    An expression has one result: what is read outside starts another one.
    """
    roots: set[Node] = set()
    while True:
        root: dict[Node, Node] = {}
        for node in model.graph.nodes:
            root[node] = node
            if node.op != "call_function" or node.target not in POINTWISE or not _is_float(node):
                continue
            inputs = [a for a in node.all_input_nodes if not _is_number(a)]
            if any(shape_of(a) != shape_of(node) for a in inputs) or not inputs:
                continue
            if node.target not in UNARY | SUMS | PRODUCTS | QUOTIENTS or _fused(node):
                continue
            found = {a if a in roots else root[a] for a in inputs}
            if len(found) == 1:
                root[node] = found.pop()
        expressions = {n: r for n, r in root.items() if r is not n}
        more = {
            n for n, r in expressions.items()
            if n not in roots and any(expressions.get(u) is r for u in n.users)
            and not all(expressions.get(u) is r for u in n.users)
        }  # fmt: skip
        if not more:
            return {
                n: (r, not (n.users and all(expressions.get(u) is r for u in n.users))) for n, r in expressions.items()
            }
        roots |= more


def _is_number(node: Node) -> bool:
    return node.op == "get_attr" and shape_of(node) in ((), (1,))


def _fused(node: Node) -> bool:
    """Whether a requantization does what the node does: a clamp, or a product with a number, of a product or a sum."""
    source = node.args[0]
    if not isinstance(source, Node) or len(source.users) != 1:
        return False
    if _scales(source, node):
        return True
    binary = source.target in SUMS | PRODUCTS and _is_binary(source) and len(set(source.args[:2])) == 2
    return node.target in CLAMPS and (source.target in WEIGHTED | MATMULS or binary or _fused(source))


def quantize(module: torch.nn.Module, calibration: Iterable[Sample], rule: str = ranges.DEFAULT_RULE) -> GraphModule:
    """A float module, in eval mode, to PT2E's quantized form: ``calibrate`` and ``convert``."""
    ranges.parse(rule)
    return convert(calibrate(module, calibration), rule)


def quantize_program(
    program: ExportedProgram, batches: Iterable[Sequence[torch.Tensor]], rule: str = ranges.DEFAULT_RULE
) -> GraphModule:
    """A float program, exported with a batch of 1, to PT2E's quantized form."""
    ranges.parse(rule)
    return convert(calibrate_program(program, batches), rule)


def calibrate(module: torch.nn.Module, calibration: Iterable[Sample]) -> GraphModule:
    """The module with observers that have seen the calibration.

    calibration: batches [n, …] as the module takes them; of a module of several inputs, a tuple of them, or of single
    samples. The first one's shapes, with a batch of 1, are exported.
    """
    batches = iter(calibration)
    first = _inputs(next(batches))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = tuple(x[:1].clone() for x in first)
        program = torch.export.export(module.eval(), example)
        return calibrate_program(program, (first, *map(_inputs, batches)))


def calibrate_program(program: ExportedProgram, batches: Iterable[Sequence[torch.Tensor]]) -> GraphModule:
    """As ``calibrate``, of a program exported with a batch of 1."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(prepare(program), Int8Quantizer())
        sample: tuple[torch.Tensor, ...] = ()
        for batch in batches:
            for sample in zip(*(x.split(1) for x in batch), strict=True):
                prepared(*sample)
        prepared.meta["sample"] = sample
        return prepared


def convert(calibrated: GraphModule, rule: str = ranges.DEFAULT_RULE) -> GraphModule:
    """What ``calibrate`` made, which is used up, quantized.

    rule: how activations get their ranges, see ``models.compress.ranges``; what that costs, activation by activation,
    is in the result's ``meta["calibration"]``, as ``models.compress.report`` has it. Raises ``ModelError`` where there
    is no such rule.
    """
    ranges.parse(rule)
    for observer in calibrated.modules():
        if isinstance(observer, RuleObserver):
            observer.rule = rule
    seen, sample = observed(calibrated), calibrated.meta["sample"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        converted = convert_pt2e(calibrated)
        converted.meta["calibration"] = seen
        ShapeProp(converted).propagate(*sample)  # the intake reads every node's shape
        return converted


def _inputs(batch: Sample) -> tuple[torch.Tensor, ...]:
    return (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)
