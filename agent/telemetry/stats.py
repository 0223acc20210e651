"""Counters and latencies of the daemon, as one JSON document for the ``stats`` topic."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import msgspec

from agent.serving.request import Ledger
from agent.telemetry.histogram import Histogram


class Stats:
    """Safe to call from any thread. ``about`` is published as it is: version, isa, models and so on."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.counters: dict[str, int] = {"received": 0, "answered": 0, "refused": 0, "duplicates": 0,
                                         "publish_failed": 0}  # fmt: skip
        self._refusals: dict[str, int] = {}
        self._latency: dict[str, dict[str, Histogram]] = {}

    def count(self, counter: str) -> None:
        """Adds one to a counter."""
        with self._lock:
            self.counters[counter] += 1

    def refused(self, code: str) -> None:
        """Counts a refusal by its reason."""
        with self._lock:
            self.counters["refused"] += 1
            self._refusals[code] = self._refusals.get(code, 0) + 1

    def answered(self, model: str, ledger: Ledger) -> None:
        """Counts a reply that the broker has confirmed, with its stages."""
        with self._lock:
            self.counters["answered"] += 1
            stages = self._latency.setdefault(model, {})
            for stage, ns in (*ledger.stages.items(), ("total", ledger.total_ns)):
                stages.setdefault(stage, Histogram()).add(ns // 1000)

    def document(self, **now: Any) -> bytes:
        """The JSON: what is known, what was counted, and microseconds of each stage of each model."""
        with self._lock:
            body = self._about | {
                "uptime_s": round(time.monotonic() - self._started, 1),
                "counters": dict(self.counters),
                "refusals": dict(self._refusals),
                "latency_us": {m: {s: h.summary() for s, h in stages.items()} for m, stages in self._latency.items()},
                "resident_bytes": resident_bytes(),
                "torch_imported": "torch" in sys.modules,
            }
        return msgspec.json.encode(body | now)


def resident_bytes() -> int:
    """This process's resident memory, of the kernel's own account; 0 where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
