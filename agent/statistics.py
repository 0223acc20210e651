"""What a model saw and said when it was made: the base that ``agent.telemetry.drift`` holds live traffic against.

They lie in a model file beside the header, under a metadata key of their own: agents that do not know them read the
file as ever. Counts, not shares, because the size of both samples decides what a difference means.
"""

from __future__ import annotations

import math

import msgspec

from agent.errors import ModelError
from agent.graph import Graph

BINS = 16  # of an input's elements
CONFIDENCE_BINS = 20  # of the top probability, 0..1
_MOST = 2**62


class InputStatistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an input's elements, as real values. counts: elements in each of ``BINS`` bins of equal width.

    low, high: where the first bin begins and the last one ends; what lies beyond counts in the outer ones. For u8 and
    s8 they are the container's: 16 codes a bin.
    """

    mean: float
    std: float
    low: float
    high: float
    counts: tuple[int, ...]


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of ``samples`` inferences. classes: predictions by class index; confidence: top probabilities, in bins.

    Both are empty for what is no classifier.
    """

    samples: int
    inputs: dict[str, InputStatistics]
    classes: tuple[int, ...] = ()
    confidence: tuple[int, ...] = ()


def check(statistics: Statistics, graph: Graph, classes: int) -> None:
    """Raises ``ModelError`` where statistics do not belong to a graph. classes: 0 for what is no classifier."""

    def require(holds: bool, why: str) -> None:
        if not holds:
            raise ModelError(f"statistics: {why}")

    require(0 < statistics.samples < _MOST, "samples must be above zero")
    require(set(statistics.inputs) == set(graph.inputs), "they are not of the graph's inputs")
    for name, of in statistics.inputs.items():
        numbers = (of.mean, of.std, of.low, of.high)
        require(all(math.isfinite(x) for x in numbers) and of.std >= 0, f"input '{name}' has an impossible number")
        require(of.low < of.high and math.isfinite(of.high - of.low), f"input '{name}': low must lie below high")
        require(len(of.counts) == BINS, f"input '{name}' needs {BINS} counts")
        require(min(of.counts) >= 0 and 0 < sum(of.counts) < _MOST, f"input '{name}': counts are 0 or more, not all 0")
    if not statistics.classes and not statistics.confidence:
        return
    require(len(statistics.classes) == classes, f"{len(statistics.classes)} classes, the model has {classes}")
    require(len(statistics.confidence) == CONFIDENCE_BINS, f"confidence needs {CONFIDENCE_BINS} counts")
    for name, counts in (("classes", statistics.classes), ("confidence", statistics.confidence)):
        require(min(counts) >= 0 and sum(counts) == statistics.samples, f"{name} do not add up to the samples")
