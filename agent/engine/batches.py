"""One model, ready to run for one input or for several at once, as far as that pays on this box.

    batches = load_batches(engine, model, most=16, tuning=tuning)
    batches.run([engine.check(a), engine.check(b), engine.check(c)])

Each size is an engine of its own, with its own activations; weights they share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from agent.engine.answers import Tuning, key_of
from agent.engine.batch_times import BatchTimes, Run, time_batches
from agent.engine.batching import batched, join, split
from agent.engine.engine import Engine, noise
from agent.engine.segment import Array
from agent.modelfile import Model

log = logging.getLogger(__name__)
Values = dict[str, Array]


class Batches:
    """``sizes``: of the runs that there are, the largest first, 1 the last."""

    def __init__(
        self, engine: Engine, several: Mapping[int, Engine] | None = None, times: BatchTimes | None = None
    ) -> None:
        self.engine, self.times = engine, times
        self._engines = {1: engine} | dict(several or {})
        self._seconds = {n: us / 1e6 for n, us in times.microseconds.items()} if times else {}
        self.sizes = tuple(sorted(self._engines, reverse=True))

    @property
    def most(self) -> int:
        """Inputs of the largest run."""
        return self.sizes[0]

    def parts(self, n: int) -> list[int]:
        """The sizes of the runs that ``n`` inputs take."""
        parts: list[int] = []
        for size in self.sizes:
            parts += [size] * (n // size)
            n %= size
        return parts

    def seconds(self, n: int) -> float:
        """What ``n`` inputs took when they were timed; 0 where they were not."""
        return sum(self._seconds.get(size, 0.0) for size in self.parts(n))

    def run(self, members: list[Values]) -> list[Values]:
        """What ``Engine.check`` gave for each input, to the outputs of each, byte for byte those of a run alone."""
        outputs: list[Values] = []
        for size in self.parts(len(members)):
            part = members[len(outputs) : len(outputs) + size]
            engine = self._engines[size]
            outputs += [engine.run_checked(part[0])] if size == 1 else split(engine.run_checked(join(part)), size)
        return outputs


def load_batches(engine: Engine, model: Model, most: int, tuning: Tuning | None, isa: str = "auto") -> Batches:
    """Builds the sizes up to ``most`` that pay, after timing them where that is not remembered.

    engine: what ``load`` gave for the model. tuning: None, or one without a budget and without an answer, gives single
    runs alone.
    """
    times = _times(engine, model, most, tuning, isa) if most > 1 and tuning is not None else None
    sizes = [n for n in times.worthwhile() if n <= most] if times else []
    return build_batches(engine, model, sizes, times)


def build_batches(engine: Engine, model: Model, sizes: Iterable[int], times: BatchTimes | None = None) -> Batches:
    """Builds the given sizes, whether they pay or not; those that the model can't have are left out."""
    assert engine.like is not None
    several: dict[int, Engine] = {}
    for size in sizes:
        made = batched(model, size) if size > 1 else None
        if made is not None:
            several[size] = engine.like(made)
    return Batches(engine, several, times)


def _times(engine: Engine, model: Model, most: int, tuning: Tuning, isa: str) -> BatchTimes | None:
    """What is remembered, or found now."""
    key = key_of(model, isa, engine.threads) if engine.isa != "torch" else None
    known = tuning.recall_batches(key) if key else None
    if known is not None and known.most >= most and not tuning.again:
        return known
    if tuning.budget_s <= 0 or key is None:
        return known
    one = engine.check(noise(engine))
    times = time_batches(lambda: engine.run_checked(one), lambda n: _proven(engine, model, n), most, tuning.budget_s)
    log.info("model %s: %s", model.header.name, times)
    return tuning.remember_batches(key, model.header.name, times)


def _proven(engine: Engine, model: Model, n: int) -> Run | None:
    """A run of ``n`` inputs, joined and split; None where the model has none, or where its bytes are not the same."""
    made = batched(model, n)
    if made is None or engine.like is None:
        return None
    several = Batches(engine, {n: engine.like(made)})
    golden = [engine.check(pair.inputs) for pair in model.golden]
    members = [golden[i % len(golden)] if golden and i % 2 else engine.check(noise(engine, i)) for i in range(n)]
    for given in (members, members[1:] + members[:1]):  # each input in two places
        for got, values in zip(several.run(given), given, strict=True):
            alone = engine.run_checked(values)
            if not all(np.array_equal(got[k].view(np.uint8), alone[k].view(np.uint8)) for k in alone):
                log.error("model %s: %d inputs at once give other bytes than one by one; it stays with one",
                          model.header.name, n)  # fmt: skip
                return None
    return lambda: several.run(members)
