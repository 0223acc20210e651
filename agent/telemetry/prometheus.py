"""Prometheus' text exposition, format 0.0.4: families of samples to bytes.

    exposition([Family("int8d_messages_total", "counter", "Messages.", [Sample({"model": "digits"}, 3)])])

Histograms are given as counts at bounds; their buckets are cumulative and end with ``+Inf``, as the format wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Sample:
    """One number, with its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Buckets:
    """One histogram: how many values are at most each of ``bounds``, of how many, and their sum."""

    labels: Mapping[str, str]
    bounds: Sequence[float]
    counts: Sequence[int]
    count: int
    sum: float


@dataclass(frozen=True)
class Family:
    """All samples of one name. Names and label names are the caller's, values may be anything."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[Sample | Buckets]


def exposition(families: Iterable[Family]) -> bytes:
    """The page. A family without samples is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"# HELP {family.name} {text}", f"# TYPE {family.name} {family.kind}"]
        for sample in family.samples:
            if isinstance(sample, Sample):
                lines.append(f"{family.name}{_labels(sample.labels)} {_number(sample.value)}")
                continue
            for bound, count in (*zip(sample.bounds, sample.counts, strict=True), (math.inf, sample.count)):
                lines.append(f"{family.name}_bucket{_labels(sample.labels, le=_number(bound))} {count}")
            lines.append(f"{family.name}_sum{_labels(sample.labels)} {_number(sample.sum)}")
            lines.append(f"{family.name}_count{_labels(sample.labels)} {sample.count}")
    return "".join(f"{line}\n" for line in lines).encode()


def _labels(labels: Mapping[str, str], **more: str) -> str:
    pairs = [f'{name}="{_escape(value)}"' for name, value in (*labels.items(), *more.items())]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    value = value.encode(errors="replace").decode()  # a lone surrogate has no UTF-8
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
