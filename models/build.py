"""A float module becomes a model file's contents: quantize, bring over, add golden outputs, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.utils._pytree as pytree

from agent import load
from agent.modelfile import Golden, Header, Model, Postprocess, Preprocess, assemble
from models.compress.quantize import quantize
from models.compress.ranges import DEFAULT_RULE
from models.compress.report import Observed
from models.intake.torch_export import to_graph
from models.statistics import with_statistics


@dataclass(frozen=True)
class Parity:
    """The int8 engine beside torchao's own simulation of the quantized module, over some inputs."""

    inputs: int
    top1_agreement: float
    within_a_step: float  # share of output elements
    largest_steps: float


@dataclass(frozen=True)
class Built:
    model: Model
    simulated: Callable[[torch.Tensor], torch.Tensor]
    parity: Parity
    calibration: Sequence[Observed]


def build(
    name: str,
    module: torch.nn.Module,
    calibration: Sequence[torch.Tensor],
    probes: torch.Tensor,
    labels: Sequence[str],
    preprocess: Preprocess,
    provenance: dict[str, str],
    version: str = "1",
    golden: int = 4,
    rule: str = DEFAULT_RULE,
    usual: torch.Tensor | None = None,
) -> Built:
    """What a module becomes. module: float, eval, of one input; several outputs are compared by the first.

    calibration: batches [n, c, h, w] f32. probes: [n, c, h, w] f32, the first ``golden`` of which are stored with their
    outputs; all are compared. rule: of calibration, see ``models.compress.ranges``. The graph takes u8 NHWC and gives
    f32. usual: [n, c, h, w] f32, what the file's statistics are made of; default: the calibration. A network is surest
    of what it was trained on, so give what it was not.
    """
    converted = quantize(module, calibration, rule)
    graph, constants = to_graph(converted, [preprocess.input])
    post = Postprocess(graph.outputs[0], softmax=True, top_k=min(5, len(labels))) if labels else None
    header = Header(1, name, version, graph, preprocess, post, tuple(labels), provenance)
    bare = assemble(header, constants)
    engine = load(bare)
    source, sink = graph.inputs[0], graph.outputs[0]
    ours, theirs, pairs = [], [], []
    with torch.no_grad():
        for probe in probes.split(1):
            x = np.ascontiguousarray(probe.permute(0, 2, 3, 1).numpy())
            answers = engine.run({source: x})
            ours.append(answers[sink])
            theirs.append(pytree.tree_leaves(converted(probe))[0].numpy())
            if len(pairs) < golden:
                pairs.append(Golden({source: quantized_input(engine, source, x)}, answers))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    step = next(t.scale for n in graph.nodes for t in graph.tensors if sink in getattr(n, "output", "")
                and t.name == n.input)  # fmt: skip
    steps = np.abs(a - b) / step
    classes = -1 if a.ndim == 2 else 1  # of a map, along torch's channels
    agreement = float((a.argmax(classes) == b.argmax(classes)).mean())
    parity = Parity(len(a), agreement, float((steps < 1.5).mean()), float(np.rint(steps.max())))
    batches = calibration if usual is None else [usual]
    samples = [{source: np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())} for b in batches for x in b.split(1)]
    model = with_statistics(Model(header, bare.constants, tuple(pairs)), samples)
    return Built(model, converted, parity, converted.meta["calibration"])


def quantized_input(engine, name: str, x: np.ndarray) -> np.ndarray:
    """f32 [n, h, w, c] in the container of the engine's input."""
    from agent.engine.engine import quantize as to_container

    tensor = next(t for t in engine.header.graph.tensors if t.name == name)
    return x if tensor.dtype == "f32" else to_container(x, tensor)
