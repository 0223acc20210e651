"""The ``stats`` documents of many devices as one: counts added, histograms merged.

merge(documents).latency["digits"]["total"].percentile(99)     # nanoseconds, of all requests of all devices
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.telemetry.histogram import Histogram


@dataclass
class Fleet:
    """What the documents say together. latency: nanoseconds, by model and stage."""

    devices: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    latency: dict[str, dict[str, Histogram]] = field(default_factory=dict)

    def total(self) -> Histogram:
        """From receipt to delivery, of all models."""
        merged = Histogram()
        for stages in self.latency.values():
            if "total" in stages:
                merged.merge(stages["total"])
        return merged


def merge(documents: Iterable[Any]) -> Fleet:
    """Merges documents as parsed from JSON. What of one is not as it should be counts as absent, so that a device of
    another version, or a stranger on the topic, spoils only its own share.
    """
    fleet = Fleet()
    for document in documents:
        if not isinstance(document, dict):
            continue
        fleet.devices += 1
        _add(fleet.counters, document.get("counters"))
        _add(fleet.refusals, document.get("refusals"))
        for model, stages in _items(document.get("histograms_ns")):
            for stage, packed in _items(stages):
                try:
                    found = Histogram.unpack(packed)
                except ValueError:
                    continue
                fleet.latency.setdefault(model, {}).setdefault(stage, Histogram()).merge(found)
    return fleet


def _add(counts: dict[str, int], more: Any) -> None:
    for name, count in _items(more):
        if type(count) is int and count >= 0:
            counts[name] = counts.get(name, 0) + count


def _items(table: Any) -> Iterable[tuple[str, Any]]:
    return table.items() if isinstance(table, dict) else ()
