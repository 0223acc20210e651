"""Post-training quantization with torchao's PT2E: u8 activations per tensor, s8 weights per output channel.

Every activation between two operators is quantized, also between a convolution and the addition that follows it, as
docs/numerics.md wants it. Batch-norms are folded into their convolutions by ``prepare_pt2e``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from models.intake.operators import (
    AVERAGES,
    CLAMPS,
    CONCATS,
    MAX_POOLS,
    PRODUCTS,
    SOFTMAX,
    SUMS,
    UNARY,
    WEIGHTED,
    is_move,
)

ACTIVATION = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2.0**-16),
)
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2.0**-20),
)


class Int8Quantizer(Quantizer):
    """Annotates what has an int8 form (docs/coverage.md); the rest stays float."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op != "call_function" or "quantization_annotation" in node.meta:
                continue
            if node.target in WEIGHTED:
                self._annotate(node, {node.args[0]: ACTIVATION, node.args[1]: WEIGHT})
            elif (node.target in SUMS and all(_same_shape(a, node) for a in node.args[:2]) and not node.kwargs) or (
                node.target in PRODUCTS and gated(node) is not None
            ):
                self._annotate(node, {a: ACTIVATION for a in node.args[:2]})
            elif node.target in UNARY | CLAMPS | AVERAGES:
                self._annotate(node, {node.args[0]: ACTIVATION}, fuse=False)
            elif node.target in CONCATS:
                self._annotate(node, {a: ACTIVATION for a in node.args[0]}, fuse=False)
            elif node.target in SOFTMAX:
                node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: ACTIVATION}, None, True)
            elif is_move(node) or node.target in MAX_POOLS:
                shared = SharedQuantizationSpec((node.args[0], node))
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    {node.args[0]: ACTIVATION}, shared, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing beyond what ``annotate`` does."""

    def _annotate(self, node: Node, inputs: dict, fuse: bool = True) -> None:
        users = list(node.users)
        # The clamp goes into the requantization: no quantization between the operator and it.
        fused = fuse and len(users) == 1 and users[0].target in CLAMPS
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, None if fused else ACTIVATION, True)
        if fused:
            users[0].meta["quantization_annotation"] = QuantizationAnnotation({}, ACTIVATION, True)


def gated(node: Node) -> tuple[Node, Node] | None:
    """A product's operands, the one of the output's shape first: the other has its shape, too, or is [n, c, 1, 1]."""
    a, b = node.args[:2]
    if not (isinstance(a, Node) and isinstance(b, Node)):
        return None
    shape = _meta_shape(node)
    wide, gate = (a, b) if _meta_shape(a) == shape else (b, a)
    if _meta_shape(wide) != shape or _meta_shape(gate) not in (shape, (*shape[:2], 1, 1) if len(shape) == 4 else shape):
        return None
    return wide, gate


def _meta_shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape if "val" in node.meta else node.meta["tensor_meta"].shape)


def _same_shape(a: object, b: Node) -> bool:
    return isinstance(a, Node) and "val" in a.meta and a.meta["val"].shape == b.meta["val"].shape


def quantize(module: torch.nn.Module, calibration: Iterable[torch.Tensor]) -> GraphModule:
    """A float module, in eval mode, to PT2E's quantized form.

    calibration: batches [n, c, h, w] (or whatever the module takes); the first one's shape, with a batch of 1, is
    exported.
    """
    batches = iter(calibration)
    first = next(batches)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), (first[:1].clone(),)).module(check_guards=False)
        prepared = prepare_pt2e(exported, Int8Quantizer())
        for batch in (first, *batches):
            for sample in batch.split(1):
                prepared(sample)
        converted = convert_pt2e(prepared)
        ShapeProp(converted).propagate(first[:1])  # the intake reads every node's shape
        return converted
