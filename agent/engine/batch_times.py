"""Finds, on this box, how many inputs at once pay: the time of a run for each size, against that many single runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import quantiles

import msgspec

PAYS = 0.95  # of the time that an input takes in the best smaller batch: less is worth the memory and the wait
_SLICES = 4  # turns of each size
_SLICE_S = 0.01
_MOST_RUNS = 25  # in a turn

Run = Callable[[], object]


class BatchTimes(msgspec.Struct, frozen=True):
    """What ``time_batches`` found.

    microseconds: of a run, lower quartile, for each size that was timed, 1 among them. most: the largest size that was
    asked for; what is not timed did not exist, or would have taken too long.
    """

    microseconds: dict[int, float]
    most: int

    def worthwhile(self) -> tuple[int, ...]:
        """The sizes that pay, in ascending order: each takes clearly less an input than the one before; not 1."""
        best, sizes = self.microseconds[1], []
        for size in sorted(self.microseconds):
            if size > 1 and self.microseconds[size] / size < PAYS * best:
                best = self.microseconds[size] / size
                sizes.append(size)
        return tuple(sizes)

    def __str__(self) -> str:
        pays = ", ".join(f"{n} at once take {self.microseconds[n] / n:.1f} us each" for n in self.worthwhile())
        return f"one input takes {self.microseconds[1]:.1f} us; {pays or 'several at once do not pay'}"


def sizes_up_to(most: int) -> list[int]:
    """What is tried: 2, 4, 8, 16 …"""
    return [1 << i for i in range(1, most.bit_length()) if 1 << i <= most]


def time_batches(
    single: Run,
    several: Callable[[int], Run | None],
    most: int,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchTimes:
    """Times sizes up to ``most`` in turns with single runs, for at most about ``budget_s`` seconds by ``clock``.

    several(n): builds what runs n inputs at once, proven to give the bytes of single runs; None where it can't be.
    """
    end = clock() + budget_s
    took = _turn(single, clock, 1)[-1]
    samples: dict[int, list[float]] = {}
    singles: list[float] = []
    for size in sizes_up_to(most):
        if clock() + 4 * _SLICES * size * took > end:
            break
        run = several(size)
        if run is None:
            break
        run()
        samples[size] = []
        for _ in range(_SLICES):
            singles += _turn(single, clock)
            samples[size] += _turn(run, clock)
            if clock() > end:
                break
    return BatchTimes(_quartiles({1: singles or [took], **samples}), most)


def _turn(run: Run, clock: Callable[[], float], runs: int = _MOST_RUNS) -> list[float]:
    """Seconds of some runs, after one that brings the caches round."""
    times: list[float] = []
    run()
    until = clock() + _SLICE_S
    while len(times) < runs and (not times or clock() < until):
        before = clock()
        run()
        times.append(clock() - before)
    return times


def _quartiles(samples: Mapping[int, Iterable[float]]) -> dict[int, float]:
    return {size: quantiles([*times, *times], n=4)[0] * 1e6 for size, times in samples.items()}
