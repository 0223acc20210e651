"""Whether live traffic still looks like what a model was made on: classes, confidence and input values.

    drift = Drift(settings)
    predictor.observe = drift.watch("digits", model)     # called with the inputs and outputs of each inference
    drift.snapshot()["digits"]["verdict"]                # none, moderate, major; unknown while there is too little

One in ``every`` inferences is looked at, at random distances, so that senders that take turns are all seen. Two
samples are kept: the last ``window`` looked at, which gives the verdict, and all since the start. What is measured is
docs/drift.md.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.observation import Observe, Observer
from agent.engine.segment import Array
from agent.modelfile import Model
from agent.statistics import BINS, CONFIDENCE_BINS, Statistics

Verdict = Literal["unknown", "none", "moderate", "major"]
VERDICTS: tuple[Verdict, ...] = ("unknown", "none", "moderate", "major")  # the worse, the later

_ELEMENTS = 4096  # of an input, looked at
_LEAST = 30  # inferences; fewer say nothing
_SMOOTHING = 0.5  # added to every count, so that an empty bin's logarithm is finite
_SURE = 3.0902  # standard deviations: chance alone goes beyond in one look of a thousand
Counts = NDArray[np.float64] | NDArray[np.int64]


class Settings(Protocol):
    """What is read of ``agent.config.Drift``."""

    @property
    def enabled(self) -> bool: ...
    @property
    def window(self) -> int: ...
    @property
    def every(self) -> int: ...
    @property
    def moderate(self) -> float: ...
    @property
    def major(self) -> float: ...


class Drift:
    """Of all models of the daemon. Safe to call from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watched: dict[str, _Watched] = {}

    def watch(self, name: str, model: Model) -> Observe | None:
        """What a model's inferences are to be shown to, from now on under this name; None where its file has no
        statistics to hold them against, or where it is switched off.
        """
        if model.statistics is None or not self._settings.enabled:
            self._watched.pop(name, None)
            return None
        watched = self._watched[name] = _Watched(model, model.statistics, self._settings)
        return watched.observe

    def published(self, confidential: Collection[str]) -> dict[str, dict[str, Any]]:
        """The snapshot for all to read: of confidential models the verdict alone, for what a number does between two
        documents tells the class and the brightness of the one input that came.
        """
        return {
            name: {key: found[key] for key in ("verdict", "n", "recorded")} if name in confidential else found
            for name, found in self.snapshot().items()
        }

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """By model: ``verdict``; ``n``, inferences in the window, and ``recorded``, in the model file; ``psi`` and
        ``js``, each with ``classes``, ``confidence`` and ``inputs`` by name; ``inputs``, mean and standard deviation
        beside the recorded ones; ``since_start``, with an ``n`` and ``psi`` of its own.
        """
        return {name: watched.snapshot() for name, watched in list(self._watched.items())}


class _Watched:
    def __init__(self, model: Model, recorded: Statistics, settings: Settings) -> None:
        self._recorded, self._settings = recorded, settings
        ranges = {name: (of.low, of.high) for name, of in recorded.inputs.items()}
        self._observer = Observer(model, ranges, _ELEMENTS)
        self._names = model.header.graph.inputs
        inputs, window = len(self._names), settings.window
        self._lock = threading.Lock()
        self._seen = 0
        self._tops = np.zeros(window, np.int32)
        self._confidences = np.zeros(window, np.uint8)
        self._bins = np.zeros((window, inputs, BINS), np.uint16)  # _ELEMENTS at most
        self._moments = np.zeros((window, inputs, 2))
        self._all_tops = np.zeros(len(recorded.classes), np.int64)
        self._all_confidences = np.zeros(CONFIDENCE_BINS, np.int64)
        self._all_bins = np.zeros((inputs, BINS), np.int64)
        self._left = self._distance()

    def _distance(self) -> int:
        """To the next inference that is looked at: ``every`` on average."""
        return 1 + int(random.random() * (2 * self._settings.every - 1))

    def observe(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Counts an inference, or lets it pass."""
        self._left -= 1
        if self._left > 0:
            return
        self._left = self._distance()
        seen = self._observer.observe(inputs, outputs)
        with self._lock:
            place = self._seen % len(self._tops)
            self._seen += 1
            self._tops[place], self._confidences[place] = seen.top, seen.confidence
            self._bins[place], self._moments[place] = seen.bins, seen.moments
            self._all_bins += seen.bins
            if self._all_tops.size:
                self._all_tops[seen.top] += 1
                self._all_confidences[seen.confidence] += 1

    def snapshot(self) -> dict[str, Any]:
        recorded = self._recorded
        with self._lock:
            n = min(self._seen, len(self._tops))
            bins = self._bins[:n].sum(0, dtype=np.int64)
            moments = self._moments[:n].mean(0) if n else np.zeros((len(self._names), 2))
            tops = np.bincount(self._tops[:n], minlength=len(recorded.classes)) if recorded.classes else self._all_tops
            confidences = np.bincount(self._confidences[:n], minlength=CONFIDENCE_BINS)
            seen, all_bins = self._seen, self._all_bins.copy()
            all_tops, all_confidences = self._all_tops.copy(), self._all_confidences.copy()
        window = self._measures(psi, tops, confidences, bins)
        means, deviations = moments[:, 0], np.sqrt(np.maximum(0, moments[:, 1] - moments[:, 0] ** 2))
        return {
            "verdict": self._verdict(window, n),
            "n": n,
            "recorded": recorded.samples,
            "psi": window,
            "js": self._measures(jensen_shannon, tops, confidences, bins),
            "inputs": {
                name: {
                    "mean": _round(means[i]),
                    "std": _round(deviations[i]),
                    "recorded_mean": _round(recorded.inputs[name].mean),
                    "recorded_std": _round(recorded.inputs[name].std),
                }
                for i, name in enumerate(self._names)
            },
            "since_start": {"n": seen, "psi": self._measures(psi, all_tops, all_confidences, all_bins)},
        }

    def _measures(
        self, of: Callable[[Counts, Counts], float], tops: Counts, confidences: Counts, bins: Counts
    ) -> dict[str, Any]:
        """A distance of live counts from the recorded ones, for each of what is counted."""
        recorded = self._recorded
        found: dict[str, Any] = {}
        if recorded.classes:
            found["classes"] = _round(of(tops, np.array(recorded.classes)))
            found["confidence"] = _round(of(confidences, np.array(recorded.confidence)))
        found["inputs"] = {
            name: _round(of(bins[i], np.array(recorded.inputs[name].counts))) for i, name in enumerate(self._names)
        }
        return found

    def _verdict(self, measured: dict[str, Any], n: int) -> Verdict:
        """The worst of all; chance is allowed for, since few inferences differ from the recorded ones anyway."""
        if n < min(_LEAST, self._settings.window):
            return "unknown"
        classes = len(self._recorded.classes)
        pairs = [(value, BINS) for value in measured["inputs"].values()]
        if classes:
            pairs += [(measured["classes"], classes), (measured["confidence"], CONFIDENCE_BINS)]
        excess = max(value - chance(n, self._recorded.samples, bins) for value, bins in pairs)
        settings = self._settings
        return "major" if excess > settings.major else "moderate" if excess > settings.moderate else "none"


def psi(live: Counts, recorded: Counts) -> float:
    """Population stability index, of counts by bin: the sum of (p - q) ln(p / q) over the bins' shares p and q.

    0 for equal shares; 0 too where nothing was counted. Siddiqi, Credit Risk Scorecards (2006); it is Jeffreys'
    divergence (1946). Half an element is added to each bin.
    """
    if not live.sum() or not recorded.sum():
        return 0.0
    p, q = live + _SMOOTHING, recorded + _SMOOTHING
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(live: Counts, recorded: Counts) -> float:
    """Jensen-Shannon distance, of counts by bin, 0..1: the root of the divergence in bits. Endres and Schindelin 2003.

    0 where nothing was counted.
    """
    if not live.sum() or not recorded.sum():
        return 0.0
    p, q = live / live.sum(), recorded / recorded.sum()
    middle = (p + q) / 2
    bits = sum(float((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum()) for x in (p, q)) / 2
    return math.sqrt(max(0.0, bits))


def chance(n: int, m: int, bins: int) -> float:
    """The index that n and m draws from the same distribution stay below in 999 cases of 1000.

    (1/n + 1/m) times the quantile of chi-square with bins - 1 degrees of freedom (Yurdakul and Naranjo, Statistical
    properties of the population stability index, 2020), by Wilson and Hilferty's approximation (1931).
    """
    freedom = bins - 1
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return (1 / n + 1 / m) * freedom * (1 - spread + _SURE * math.sqrt(spread)) ** 3


def _round(value: float) -> float:
    return round(float(value), 4)
