"""Whether a release that has just begun to serve serves as well as the one before.

    probation = Probation(settings, "digits", stats.snapshot(), since=when_the_old_one_began)
    while not probation.done():
        if refused := probation.judge(stats.snapshot()):     # every second or so
            ...                                              # back to the one before

Three rules, each by what chance would seldom do (``SURE``), so that three failures of three end it, and one does not:

- *errors*: requests that failed (``internal``) and answers with a NaN (``Watch``) are more than the share that failed
  before plus ``max_error_rate``.
- *latency*: more than 1% of the runs (``compute_infer``) take longer than ``max_slowdown`` times the p99 before, and
  ``FLOOR_NS`` longer; or more than half of them longer than the budget. So that a burst of other work on the box does
  not count, it must hold in most of ``SLICES`` slices of the time; past the end, where few slices have enough runs, of
  the whole. Where requests are computed together more than before, the limit grows with their number.
- *latency*: more requests than before plus ``max_error_rate`` miss their deadline, while the median run is slower, too,
  or there is next to none. Otherwise it is traffic that has grown.

Where the one before had next to no traffic, errors and the budget are judged alone; a missed deadline is then a run
over the budget.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.engine.segment import Array
from agent.live.chance import tail
from agent.predict import Predictor
from agent.repository.reasons import Refused
from agent.telemetry.histogram import Histogram
from agent.telemetry.stats import Snapshot

SURE = 0.001  # judged again and again, so rarer than in one look
LEAST = 3  # failures, or slow runs; fewer are never too many
FLOOR_NS = 1_000_000  # by which p99 must grow to count: below, a scheduler's tick is as much
SLICES = 10  # of the probation
_RUNS = 20  # that a slice lasts for, at least, and that make a base
_JUDGED_SLICES = 3  # at least
_SLOWER = 1.125  # the median, where deadlines are missed


class Settings(Protocol):
    """What is read of ``agent.config.tables.Updates``."""

    @property
    def probation_s(self) -> float: ...
    @property
    def max_error_rate(self) -> float: ...
    @property
    def max_slowdown(self) -> float: ...


class Watch:
    """Counts answers with a NaN. Infinities are left alone: a logarithm of a probability may be one."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._predictors = list(predictors)
        self._lock = threading.Lock()
        self.nans = 0
        for predictor in self._predictors:
            predictor.show(self._look)

    def stop(self) -> None:
        """Looks no more."""
        for predictor in self._predictors:
            predictor.hide(self._look)
        self._predictors.clear()

    def _look(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for array in outputs.values():
            if array.dtype == np.float32 and math.isnan(array.max(initial=-np.inf)):  # as where any element is one
                with self._lock:
                    self.nans += 1
                return


@dataclass(frozen=True)
class _Traffic:
    """Of one model in some time. broke: refused as ``internal``; late: as ``expired``; nans: answered with one.

    infer: nanoseconds of the runs, of what was answered; sizes: answers by batch size.
    """

    broke: int
    late: int
    nans: int
    infer: Histogram
    sizes: Mapping[int, int]

    @staticmethod
    def of(snapshot: Snapshot, model: str, nans: int = 0) -> _Traffic:
        failures = snapshot.failures.get(model, {})
        infer = snapshot.latency.get(model, {}).get("compute_infer") or Histogram()
        return _Traffic(failures.get("internal", 0), failures.get("expired", 0), nans, infer,
                        snapshot.batches.get(model, {}))  # fmt: skip

    def since(self, earlier: _Traffic) -> _Traffic:
        sizes = {size: n - earlier.sizes.get(size, 0) for size, n in self.sizes.items()}
        return _Traffic(self.broke - earlier.broke, self.late - earlier.late, self.nans - earlier.nans,
                        self.infer.since(earlier.infer), sizes)  # fmt: skip

    @property
    def failed(self) -> int:
        return self.broke + self.nans

    @property
    def requests(self) -> int:
        # An answer with a NaN is seen before its delivery is.
        return max(self.failed, sum(self.sizes.values()) + self.broke + self.late)

    @property
    def together(self) -> int:
        """The batch size that 99% of the answers do not exceed."""
        left = sum(self.sizes.values()) / 100
        for size in sorted(self.sizes, reverse=True):
            left -= self.sizes[size]
            if left < 0:
                return size
        return 1


class Probation:
    """Begins when it is made, at the switch. Not safe to call from two threads at once.

    before: the counts at the switch; since: those when the model before began to serve, None where the process did with
    it. budget_s: of a run, 0 where there is none. watch: of the release's predictors. clock: seconds.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        before: Snapshot,
        since: Snapshot | None = None,
        budget_s: float = 0.0,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._model, self._watch, self._clock = settings, model, watch, clock
        self._budget_ns = round(budget_s * 1e9)
        self._switch = _Traffic.of(before, model)
        self._before = self._switch if since is None else self._switch.since(_Traffic.of(since, model))
        self._has_base = self._before.infer.total >= _RUNS
        self._begun = self._slice_begun = clock()
        self._seen = self._switch.since(self._switch)
        self._slice = self._seen  # what was seen when the slice began
        self._slices: list[str | None] = []  # why each was too slow

    def done(self) -> bool:
        """Whether its time is over. ``judge`` once more, and the release has passed."""
        return self._clock() - self._begun >= self._settings.probation_s

    def judge(self, snapshot: Snapshot) -> Refused | None:
        """Why the release must go, as far as the counts tell up to now."""
        done = self.done()
        seen = _Traffic.of(snapshot, self._model, self._watch.nans if self._watch else 0).since(self._switch)
        self._seen = seen
        why = self._failing(seen)
        if why:
            return Refused("errors", why)
        self._end_slice(seen)
        slow = [why for why in self._slices if why]
        if len(slow) >= _JUDGED_SLICES and 2 * len(slow) > len(self._slices):
            return Refused("latency", slow[-1])
        why = self._missing_deadlines(seen) or (
            self._slow(seen) if done and len(self._slices) < _JUDGED_SLICES else None
        )
        return Refused("latency", why) if why else None

    def report(self) -> dict[str, float]:
        """As of the last ``judge``: requests, failures, late, and nans among the failures; p99_us and p99_before_us of
        a run, where there was one; left_s.
        """
        seen = self._seen
        left = max(0.0, self._settings.probation_s - (self._clock() - self._begun))
        found = {"requests": seen.requests, "failures": seen.failed, "late": seen.late, "nans": seen.nans,
                 "left_s": round(left, 1)}  # fmt: skip
        for name, traffic in (("p99_us", seen), ("p99_before_us", self._before)):
            if any(traffic.infer.counts):
                found[name] = traffic.infer.percentile(99) / 1e3
        return {name: float(value) for name, value in found.items()}

    def _failing(self, seen: _Traffic) -> str | None:
        before = self._before.failed / max(1, self._before.requests)
        allowed = before + self._settings.max_error_rate
        if not _too_many(seen.failed, seen.requests, allowed):
            return None
        nans = f", {seen.nans} of them answered with a NaN" if seen.nans else ""
        return (
            f"{seen.failed} of {seen.requests} requests failed ({seen.failed / seen.requests:.1%}){nans}; "
            f"before it was {before:.1%}, and updates.max_error_rate allows {self._settings.max_error_rate:.1%} more"
        )

    def _end_slice(self, seen: _Traffic) -> None:
        now = self._clock()
        if now - self._slice_begun < self._settings.probation_s / SLICES:
            return
        part = seen.since(self._slice)
        if part.infer.total >= _RUNS:
            self._slices.append(self._slow(part))
            self._slice, self._slice_begun = seen, now

    def _slow(self, seen: _Traffic) -> str | None:
        runs, budget = seen.infer.total, self._budget_ns
        late = 0 if self._has_base else seen.late
        if budget:
            over = seen.infer.above(budget) + late
            if _too_many(over, runs + late, 0.5):
                return f"{over} of {runs + late} runs took longer than the budget of {budget / 1e6:g} ms"
        if not self._has_base:
            return None
        p99 = self._before.infer.percentile(99)
        limit = max(p99 * self._settings.max_slowdown, p99 + FLOOR_NS)
        limit *= max(1.0, seen.together / self._before.together)
        if not _too_many(seen.infer.above(round(limit)), runs, 0.01):
            return None
        return (
            f"p99 of a run is {seen.infer.percentile(99) / 1e6:.2f} ms in {runs} runs; "
            f"before it was {p99 / 1e6:.2f} ms, and updates.max_slowdown is {self._settings.max_slowdown:g}"
        )

    def _missing_deadlines(self, seen: _Traffic) -> str | None:
        before = self._before.late / max(1, self._before.requests)
        allowed = before + self._settings.max_error_rate
        if not self._has_base or not _too_many(seen.late, seen.requests, allowed):
            return None
        median, median_before = seen.infer.percentile(50), self._before.infer.percentile(50)
        if median <= _SLOWER * median_before if seen.infer.total >= _RUNS else seen.late < _RUNS:
            return None
        return (
            f"{seen.late} of {seen.requests} requests missed their deadline ({seen.late / seen.requests:.1%}); "
            f"before it was {before:.1%}; the median run took {median / 1e6:.2f} ms, "
            f"before {median_before / 1e6:.2f} ms"
        )


def _too_many(count: int, of: int, share: float) -> bool:
    return count >= LEAST and tail(count, of, share) < SURE
