"""Counters and latencies of the daemon: what the ``stats`` topic and ``/metrics`` are made from."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.serving.request import Ledger
from agent.telemetry.histogram import Histogram
from agent.telemetry.sensors import Sensors

COUNTERS = {
    "received": "Messages and HTTP requests that brought an input.",
    "answered": "Inferences whose reply was delivered.",
    "refused": "Requests that were answered with an error.",
    "duplicates": "Messages that had come before, and were answered without being computed again.",
    "publish_failed": "Replies that could not be delivered.",
}


FAILURES = frozenset({"internal", "expired"})  # refusals that are counted by model, too: it broke, or was late


@dataclass(frozen=True)
class Snapshot:
    """What was counted at one moment. latency: nanoseconds, by model and stage, ``total`` being a stage, too.
    batches: answers by model, and by how many requests were computed together. failures: by model, and by code of
    ``FAILURES``.
    """

    uptime_s: float
    counters: dict[str, int]
    refusals: dict[str, int]
    latency: dict[str, dict[str, Histogram]]
    batches: dict[str, dict[int, int]]
    failures: dict[str, dict[str, int]]


class Stats:
    """Safe to call from any thread. ``about`` is published as it is: version, isa, models and so on.

    The counting methods lie on every message's way: they take the lock for a microsecond or two, and whoever reads
    copies under the lock and computes behind it.
    """

    def __init__(self, about: dict[str, Any], sensors: Sensors | None = None) -> None:
        self.about = about
        self.sensors = sensors
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.started_unix = time.time()
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._refusals: dict[str, int] = {}
        self._failures: dict[str, dict[str, int]] = {m: {} for m in about.get("models", ())}
        self._latency: defaultdict[str, defaultdict[str, Histogram]] = defaultdict(lambda: defaultdict(Histogram))
        self._batches: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._last_energy = (0.0, 0)  # joules, answered

    def count(self, counter: str) -> None:
        """Adds one to a counter."""
        with self._lock:
            self.counters[counter] += 1

    def refused(self, code: str, model: str = "") -> None:
        """Counts a refusal by its reason; one of ``FAILURES`` by the model, too, if it is one that is served."""
        with self._lock:
            self.counters["refused"] += 1
            self._refusals[code] = self._refusals.get(code, 0) + 1
            failures = self._failures.get(model) if code in FAILURES else None  # not by a stranger's words
            if failures is not None:
                failures[code] = failures.get(code, 0) + 1

    def answered(self, model: str, ledger: Ledger) -> None:
        """Counts a reply that was delivered, with its stages."""
        with self._lock:
            self.counters["answered"] += 1
            self._batches[model][ledger.batch_size] += 1
            histograms = self._latency[model]
            for stage, ns in ledger.stages.items():
                histograms[stage].add(ns)
            histograms["total"].add(ledger.total_ns)

    def snapshot(self) -> Snapshot:
        """All of it, as of one moment."""
        with self._lock:
            return Snapshot(
                time.monotonic() - self._started,
                dict(self.counters),
                dict(self._refusals),
                {m: {s: h.copy() for s, h in stages.items()} for m, stages in self._latency.items()},
                {m: dict(sizes) for m, sizes in self._batches.items()},
                {m: dict(codes) for m, codes in self._failures.items() if codes},
            )

    def document(self, **now: Any) -> bytes:
        """The JSON: what is known, what was counted, and of each stage of each model the latencies."""
        s = self.snapshot()
        body = self.about | {
            "uptime_s": round(s.uptime_s, 1),
            "counters": s.counters,
            "refusals": s.refusals,
            "failures": s.failures,
            "latency_us": {m: {stage: _summary(h) for stage, h in stages.items()} for m, stages in s.latency.items()},
            "histograms_ns": {m: {stage: h.pack() for stage, h in stages.items()} for m, stages in s.latency.items()},
            "batch_sizes": {m: {str(size): n for size, n in sorted(b.items())} for m, b in s.batches.items()},
            "resident_bytes": resident_bytes(),
            "torch_imported": "torch" in sys.modules,
        }
        return msgspec.json.encode(body | self._sensed(s.counters["answered"]) | now)

    def _sensed(self, answered: int) -> dict[str, Any]:
        """``sensors``, and the joules an inference cost since the last document, where the kernel tells."""
        if self.sensors is None:
            return {}
        reading = self.sensors.read()
        found: dict[str, Any] = reading.document()
        if reading.total_joules is not None:
            with self._lock:
                joules, before = self._last_energy
                self._last_energy = (reading.total_joules, answered)
            if answered > before:
                found["joules_per_inference"] = round((reading.total_joules - joules) / (answered - before), 6)
        return {"sensors": found} if found else {}


def _summary(histogram: Histogram) -> dict[str, int]:
    """count, p50, p90, p99, p99.9 and max, in whole microseconds."""
    names = (50, 90, 99, 99.9)
    found = {f"p{p:g}": ns // 1000 for p, ns in zip(names, histogram.percentiles(*names), strict=True)}
    return {"count": histogram.total, **found, "max": histogram.max // 1000}


def resident_bytes() -> int:
    """This process's resident memory, of the kernel's own account; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
