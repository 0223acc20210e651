"""What a model sees and says over the pictures that it was calibrated on, for its file; see ``agent.statistics``.

model = with_statistics(model, samples)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from agent.engine import load
from agent.engine.observation import Observer, Range, open_ranges
from agent.errors import ModelError
from agent.modelfile import Model
from agent.statistics import CONFIDENCE_BINS, InputStatistics, Statistics

Arrays = Mapping[str, np.ndarray]


def with_statistics(model: Model, samples: Sequence[Arrays]) -> Model:
    """The model with those of its own answers to ``samples``, which are inputs by name as the engine takes them.

    Raises ``ModelError`` where there are none, ``InputError`` for one that the engine does not take.
    """
    if not samples:
        raise ModelError("statistics: there is nothing to make them of; give some pictures or arrays")
    graph, post = model.header.graph, model.header.postprocess
    ranges = {name: _range([s[name] for s in samples]) for name in open_ranges(graph)}
    observer, engine = Observer(model, ranges), load(model)
    seen = [observer.observe(sample, engine.run(sample)) for sample in samples]
    bins, moments = np.sum([s.bins for s in seen], 0), np.mean([s.moments for s in seen], 0)
    inputs = {}
    for i, name in enumerate(graph.inputs):
        mean, square = moments[i].tolist()
        low, high = observer.limits(name)
        inputs[name] = InputStatistics(mean, max(0.0, square - mean * mean) ** 0.5, low, high, tuple(bins[i].tolist()))
    statistics = Statistics(len(seen), inputs)
    if post is not None:
        classes = engine.outputs[post.output].shape[-1]
        statistics = Statistics(
            len(seen),
            inputs,
            tuple(np.bincount([s.top for s in seen], minlength=classes).tolist()),
            tuple(np.bincount([s.confidence for s in seen], minlength=CONFIDENCE_BINS).tolist()),
        )
    return replace(model, statistics=statistics)


def _range(arrays: Sequence[np.ndarray]) -> Range:
    """Of all finite values; never empty."""
    finite = np.concatenate([a[np.isfinite(a)].astype(np.float64).ravel() for a in arrays])
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low, low + max(1.0, abs(low)))
