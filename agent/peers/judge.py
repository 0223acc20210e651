"""Times int8d and its peers on one network, in one process, in turns: a slice of each, over and over, so that a machine
whose speed drifts drifts for all. Everyone is warm, and everyone may spin."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.engine import Tuning, load, noise
from agent.modelfile import Model
from agent.peers import runners


def compare(
    model: Model, peers: Sequence[str], threads: int, seconds: float, tuning: Tuning | None = None
) -> dict[str, Any]:
    """Milliseconds of each contender, and the ratio of our median to the best peer's.

    ``agreement`` is, for each peer, the share of output elements that are equal to ours, and whether the greatest
    one is the same.
    """
    engine = load(model, threads, spin_us=2000, tuning=tuning)
    inputs = noise(engine)
    contenders: dict[str, Callable[[], Any]] = {"int8d": lambda: engine.run(inputs)}
    ours = engine.run(inputs)
    agreement = {}
    for peer in peers:
        contenders[peer] = runners.make(peer, model, inputs, threads)
        agreement[peer] = _agreement(ours, contenders[peer]())
    times = interleaved(contenders, seconds)
    table = {name: _figures(t) for name, t in times.items()}
    best = min((table[p]["p50_ms"] for p in peers), default=float("nan"))
    macs = sum(s.macs for s in engine.steps())
    return {
        "model": model.header.name,
        "threads": threads,
        "isa": engine.isa,
        "contenders": table,
        "ratio": table["int8d"]["p50_ms"] / best,
        "gmac_per_s": macs / table["int8d"]["p50_ms"] / 1e6,
        "agreement": agreement,
        "versions": {p: runners.version(p) for p in peers},
    }


def interleaved(contenders: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call. A slice is 50 ms, the first calls of each slice are not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not all(times.values()):
        for name, run in contenders.items():
            for _ in range(2):
                run()
            end = time.perf_counter() + 0.05
            while True:
                start = time.perf_counter()
                run()
                stop = time.perf_counter()
                times[name].append(stop - start)
                if stop > end:
                    break
    return times


def _figures(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    n = len(ordered)
    return {"min_ms": ordered[0] * 1e3, "p50_ms": ordered[n // 2] * 1e3, "p95_ms": ordered[n * 95 // 100] * 1e3}


def _agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    name = next(iter(ours))
    a, b = ours[name], np.asarray(theirs[name])
    a = a.transpose(0, 3, 1, 2) if a.ndim == 4 else a
    return {"equal": float((a == b).mean()), "top1": bool(a.argmax() == b.argmax())}
