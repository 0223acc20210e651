"""Runs a model and its source over the same inputs, and adds up how well they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from agent import graph as g
from agent import load
from agent.engine import Engine
from agent.errors import ModelError
from agent.modelfile import Model
from agent.validate import node_outputs
from models.check.compare import Tally, Value
from models.check.report import Report
from models.check.samples import Arrays
from models.check.sources import EngineSource, Source, engines, open_source


def check(model: Model, samples: Iterable[Arrays], against: str | None = None, layers: bool = False) -> Report:
    """against: see ``models.check.sources.open_source``; None holds the native kernels against the torch backend.

    samples: inputs by name, in the graph's containers. layers: every tensor that the source has under the same name.
    Raises ``ModelError`` where the source can't be opened, or has none of the model's outputs.
    """
    source = EngineSource(model) if against is None else open_source(against, model)
    # Showing inner tensors may change how a source runs: outputs are those of one that shows none.
    whole = open_source(against, model, layers=True) if against is not None and layers else source
    graph = model.header.graph
    makers = {name: node for node in graph.nodes for name in node_outputs(node)}
    outputs = {name: _comparable(name, makers, source) for name in graph.outputs}
    held = list(dict.fromkeys(name for name in outputs.values() if name))
    if not held:
        raise ModelError(f"{source.title} has none of the model's outputs ({', '.join(graph.outputs)})")
    inner = [name for name in makers if layers and whole.has(name) and not isinstance(makers[name], g.Constant)]
    own = load(model)
    output_engines = [own] if held == list(graph.outputs) else list(engines(model, held))
    layer_engines = list(engines(model, inner))
    output_tallies, layer_tallies = (_tallies(graph, makers, names) for names in (held, inner))
    count = 0
    for sample in samples:
        _add(output_tallies, output_engines, sample, source.run(sample, held))
        if inner:
            _add(layer_tallies, layer_engines, sample, whole.run(sample, inner))
        count += 1
    if not count:
        raise ModelError("there is nothing to compare: no inputs were given")
    empty = [name for name, tally in output_tallies.items() if not tally.elements]
    if empty:
        raise ModelError(f"{source.title} has the outputs {', '.join(empty)} in another shape")
    return Report(
        model=model.header.name,
        against=source.title,
        inputs=count,
        outputs=[t.agreement() for t in output_tallies.values()],
        not_compared=[name for name, stand_in in outputs.items() if not stand_in],
        golden=len(model.golden),
        golden_equal=_golden(model, own),
        layers=[t.agreement() for t in layer_tallies.values() if t.elements] if layers else None,
    )


def _comparable(name: str, makers: dict[str, g.Node], source: Source) -> str:
    """The tensor to compare for an output: itself, or the integers that it was made from; empty where there is none."""
    maker = makers.get(name)
    if not source.has(name) and isinstance(maker, g.Dequantize) and source.has(maker.input):
        return maker.input
    return name if source.has(name) else ""


def _tallies(graph: g.Graph, makers: dict[str, g.Node], names: Sequence[str]) -> dict[str, Tally]:
    tensors = {t.name: t for t in graph.tensors}
    made = {}
    for name in names:
        maker = makers.get(name)
        step = tensors[maker.input].scale if isinstance(maker, g.Dequantize) else 0.0
        made[name] = Tally(tensors[name], maker, step)
    return made


def _add(tallies: dict[str, Tally], ours: Sequence[Engine], sample: Arrays, theirs: dict[str, Value]) -> None:
    for engine in ours:
        for name, array in engine.run(sample).items():
            if name in theirs:
                tallies[name].add(array, theirs[name])


def _golden(model: Model, engine: Engine) -> int:
    """How many golden inputs give the very bytes of the golden outputs."""
    return sum(
        all(np.array_equal(array, pair.outputs[name]) for name, array in engine.run(pair.inputs).items())
        for pair in model.golden
    )
