"""How a call is timed: slices, and their figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

WARM_S = 0.01  # a slice's first calls fill the caches that others emptied, and wake sleeping threads


def timed_slice(run: Callable[[], Any], seconds: float) -> list[int]:
    """Nanoseconds of each call within a slice; one call at least. Warms up for two calls and ``WARM_S`` first."""
    warm = time.perf_counter() + WARM_S
    run()
    run()
    while time.perf_counter() < warm:
        run()
    times: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while True:
        start = time.perf_counter_ns()
        run()
        stop = time.perf_counter_ns()
        times.append(stop - start)
        if stop > end:
            return times


def figures(nanoseconds: Sequence[int], macs: int) -> dict[str, float]:
    """min, median and 95th percentile in milliseconds; 10^9 multiply-accumulates a second at the median."""
    ordered = sorted(nanoseconds)
    n = len(ordered)
    p50 = ordered[n // 2]
    return {
        "runs": n,
        "min_ms": ordered[0] / 1e6,
        "p50_ms": p50 / 1e6,
        "p95_ms": ordered[n * 95 // 100] / 1e6,
        "gmac_per_s": macs / p50,
    }
