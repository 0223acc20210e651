"""A model, loaded: for each worker its own engine, where it has several replicas.

There are as many workers as the model with the most replicas has; a model with fewer is shared by them, in turns. An
engine's threads run where the thread that builds it may run, so it is built on the cores that it shall have. Weights
are there once: what kernels pack of them, engines share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from agent.config.tables import Config, ModelConfig
from agent.engine import Engine, Tuning, load, load_batches
from agent.errors import ConfigError
from agent.modelfile import Model
from agent.predict import Predictor
from agent.serving.batcher import Seat


def load_replicas(
    model: ModelConfig, contents: Model, config: Config, tuning: Tuning | None
) -> tuple[list[Predictor], list[Seat]]:
    """A predictor and a seat for each replica. What the tuner finds for the first holds for the others."""
    predictors: list[Predictor] = []
    seats: list[Seat] = []
    engine: Engine | None = None
    for cores in shares(model.cores, model.replicas):
        with pinned(cores):
            if engine is None or engine.like is None:
                engine = load(contents, model.threads, model.backend, spin_us=config.spin_us, tuning=tuning)
            else:
                engine = engine.like(contents)
            batches = load_batches(engine, contents, model.max_batch, tuning)
        predictors.append(Predictor(engine, model.name, model.version, config.limits, batches))
        seats.append(Seat(predictors[-1], cores, model.batch_wait_us / 1e6))
    return predictors, seats


def seats_of(replicas: Mapping[str, Sequence[Seat]]) -> list[dict[str, Seat]]:
    """By worker, the seat of each model."""
    workers = max(len(seats) for seats in replicas.values())
    return [{name: seats[i % len(seats)] for name, seats in replicas.items()} for i in range(workers)]


@contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """The calling thread, and those that it starts, on these cores; None leaves it as it is."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    if not cores <= before:
        missing, allowed = (", ".join(map(str, sorted(c))) for c in (cores - before, before))
        raise ConfigError(f"cores: this process may not run on {missing}, only on {allowed}")
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def shares(cores: Sequence[int], count: int) -> list[frozenset[int] | None]:
    """The cores of each replica: equal shares, or all of them where there are fewer than replicas; None: anywhere."""
    if not cores:
        return [None] * count
    if len(cores) < count:
        return [frozenset(cores)] * count
    return [frozenset(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)]
