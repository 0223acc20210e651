"""Which range of an activation 256 values stand for: the rules of calibration, on a histogram.

    h = Histogram()
    h.add(array)                    # as often as there is something to see
    low, high = choose(h, "mse")
    cost(h, low, high).sqnr_db

A rule is ``minmax``, ``percentile`` (99.99 % of the values), ``percentile:P``, ``mse`` or ``entropy``. Every range
holds zero, and zero is one of the 256 values: padding and ReLU are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from agent.errors import ModelError

RULES = ("minmax", "percentile", "mse", "entropy")
DEFAULT_RULE = "mse"
PERCENTILE = 99.99
MOST_LOST = 0.01  # the share of values that the entropy rule may leave beyond its range
LEAST_SCALE = 2.0**-16
_HALF = 4096  # bins on either side of zero: 8 to 16 for each of the 256 values, as TensorRT has
_PARTS = np.linspace(1, 0, 64, endpoint=False)  # of an extreme


class Histogram:
    """Counts of what an activation was, its exact extremes, and the sum of its squares.

    The bins are [i * width, (i + 1) * width), with a width that is a power of two and doubles where a value lies beyond
    the last bin: two bins become one, exactly, so that neither order nor batches change the result. Zeros are counted
    apart, for every range holds them exactly. Infinities and NaN are passed over.
    """

    def __init__(self) -> None:
        self.least, self.greatest = math.inf, -math.inf
        self.zeros = 0
        self.energy = 0.0  # the sum of squares
        self._width = 0.0
        self._counts = np.zeros(2 * _HALF, np.int64)

    def add(self, array: np.ndarray) -> None:
        """array: floats of any shape."""
        x = array.ravel("K")
        if not x.size:
            return
        least, greatest = float(x.min()), float(x.max())
        if not math.isfinite(least - greatest):
            return self.add(x[np.isfinite(x)])
        self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
        self.energy += float(np.square(x, dtype=np.float64).sum())
        zeros = x.size - int(np.count_nonzero(x))
        self.zeros += zeros
        if zeros == x.size:
            return
        most = max(-self.least, self.greatest)
        width = 2.0 ** (math.frexp(most)[1] - int(math.log2(_HALF)))  # most < width * _HALF
        while 0 < self._width < width:
            self._width *= 2
            merged = self._counts.reshape(-1, 2).sum(1)
            self._counts[:] = 0
            self._counts[_HALF // 2 : _HALF // 2 + _HALF] = merged
        self._width = self._width or width
        bins = np.floor(x * x.dtype.type(1 / self._width)).astype(np.intp) + _HALF
        self._counts += np.bincount(bins, minlength=2 * _HALF)
        self._counts[_HALF] -= zeros

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self._counts.sum()) + self.zeros

    @property
    def width(self) -> float:
        """Of a bin."""
        return self._width

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres, f64, and counts, s64, of the bins that hold something, in order; without the zeros."""
        found = np.flatnonzero(self._counts)
        centres = np.clip((found - _HALF + 0.5) * self._width, self.least, self.greatest)
        return centres, self._counts[found]


@dataclass(frozen=True)
class Cost:
    """What a range loses of the signal: its power over that of an error, in dB; infinite where there is no error.

    clipped: the share of values beyond the range. clipping_db counts their error alone, rounding_db that of the others.
    """

    clipped: float
    clipping_db: float
    rounding_db: float
    sqnr_db: float


def parse(rule: str) -> tuple[str, float]:
    """The rule's name, and the share of values that ``percentile`` keeps. Raises ``ModelError``."""
    name, colon, text = rule.partition(":")
    try:
        share = float(text) / 100 if colon else PERCENTILE / 100
    except ValueError:
        share = 0.0
    if name not in RULES or (colon and name != "percentile") or not 0.5 < share <= 1:
        raise ModelError(f"there is no rule '{rule}' of calibration; there are minmax, percentile (percentile:99.9 "
                         "says how many values of a hundred are kept, above 50), mse, entropy")  # fmt: skip
    return name, share


def choose(h: Histogram, rule: str) -> tuple[float, float]:
    """The range by a rule; it holds zero. Raises ``ModelError`` for a rule that there is not."""
    name, share = parse(rule)
    low, high = min(h.least, 0.0), max(h.greatest, 0.0)
    if h.zeros == h.total or name == "minmax":
        return (low, high) if h.total else (0.0, 0.0)
    if name == "percentile":
        return _percentile(h, share)
    return _search(h, _squared_error if name == "mse" else _divergence)


def affine(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of u8: (high - low) / 255, in fp32, and -rint(low / scale)."""
    scale = max(np.float32(np.float32(high) - np.float32(low)) / np.float32(255), np.float32(LEAST_SCALE))
    return scale, int(np.clip(-np.rint(np.float32(low) / scale), 0, 255))


def cost(h: Histogram, low: float, high: float) -> Cost:
    """What the range costs, after the histogram: values lie evenly in a bin, and zeros cost nothing."""
    if h.zeros == h.total:
        return Cost(0.0, math.inf, math.inf, math.inf)
    x, counts = h.bins()
    error, beyond = _errors(h, x, *affine(low, high))
    clipping, rounding = float(error[beyond] @ counts[beyond]), float(error[~beyond] @ counts[~beyond])
    clipped = int(counts[beyond].sum()) / h.total
    return Cost(clipped, *(_decibel(h.energy, noise) for noise in (clipping, rounding, clipping + rounding)))


def _decibel(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf


def _errors(h: Histogram, x: np.ndarray, scale: np.float32, zero_point: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean squared error of each bin's values, and which bins lie beyond the range."""
    step = float(scale)
    q = np.rint(x / step)
    kept = np.clip(q, -zero_point, 255 - zero_point)
    error = (x - kept * step) ** 2 + h.width**2 / 12
    if h.width > step / 4:  # such bins know nothing of where in a step their values lie
        error[q == kept] = step**2 / 12
    return error, q != kept


def _percentile(h: Histogram, share: float) -> tuple[float, float]:
    """The range that holds this share of the values, as many lost below it as above.

    Wu et al., Integer Quantization for Deep Learning Inference (arXiv 2004.09602), has it for |x|; here it is cut off
    at both ends, as ONNX Runtime's calibration does for asymmetric ranges.
    """
    x, counts = h.bins()
    at = int(np.searchsorted(x, 0.0))
    x, counts = np.insert(x, at, 0.0), np.insert(counts, at, h.zeros)
    below, lost = np.cumsum(counts), (1 - share) / 2 * h.total
    low = float(x[np.searchsorted(below, lost, "right")])
    high = float(x[min(np.searchsorted(below, h.total - lost), len(x) - 1)])
    half = h.width / 2  # from a bin's centre to its edge
    return max(min(low - half, 0.0), min(h.least, 0.0)), min(max(high + half, 0.0), max(h.greatest, 0.0))


Objective = Callable[[Histogram, np.ndarray, np.ndarray, np.float32, int], float]


def _search(h: Histogram, objective: Objective) -> tuple[float, float]:
    """The best of 64 bounds on |x|; from there one end at a time is moved, among 64 places and then near, until none
    helps."""
    x, counts = h.bins()
    extremes = min(h.least, 0.0), max(h.greatest, 0.0)
    best, ends = math.inf, extremes

    def try_all(candidates: Iterable[tuple[float, float]]) -> bool:
        nonlocal best, ends
        before = best
        for tried in candidates:
            loss = objective(h, x, counts, *affine(*tried))
            if loss < best * (1 - 1e-6):
                best, ends = loss, tried
        return best < before

    most = max(-extremes[0], extremes[1])
    try_all((max(extremes[0], -most * part), min(extremes[1], most * part)) for part in _PARTS)
    for spread in (1.0, 2.0 / len(_PARTS)):
        moved = True
        while moved:
            low, high = ends
            near = [np.clip((end / extreme if extreme and spread < 1 else 0.5) + spread * (_PARTS - 0.5), 1e-3, 1)
                    for end, extreme in zip(ends, extremes, strict=True)]  # fmt: skip
            moved = try_all((low, float(extremes[1] * part)) for part in near[1])
            low, high = ends
            moved |= try_all((float(extremes[0] * part), high) for part in near[0])
    return float(ends[0]), float(ends[1])


def _squared_error(h: Histogram, x: np.ndarray, counts: np.ndarray, scale: np.float32, zero_point: int) -> float:
    """The sum of squared errors: Nagel et al., A White Paper on Neural Network Quantization (arXiv 2106.08295), 3.1."""
    return float(_errors(h, x, scale, zero_point)[0] @ counts)


def _divergence(h: Histogram, x: np.ndarray, counts: np.ndarray, scale: np.float32, zero_point: int) -> float:
    """Kullback and Leibler's divergence of what is quantized from what was.

    Migacz, 8-bit Inference with TensorRT (GTC 2017).

    TensorRT has it for |x| and 128 values. Here, the bins of the range go to the nearest of its 256 values; the
    reference P counts what lies beyond in the outermost bins; Q spreads what each value got evenly over its bins that
    are not empty, without what lies beyond. Zeros are left out: they would only ask for a fine step around them.
    A histogram of few values would be matched best by a range that holds one of them: a hundredth may be lost at most.
    """
    q = np.rint(x / float(scale)).astype(np.int64) + zero_point
    inside = (q >= 0) & (q <= 255)
    if counts[~inside].sum() > MOST_LOST * counts.sum():
        return math.inf
    sliced, level = counts[inside].astype(np.float64), q[inside]
    reference = sliced.copy()
    reference[0] += counts[q < 0].sum()
    reference[-1] += counts[q > 255].sum()
    spread = np.bincount(level, sliced, 256) / np.maximum(np.bincount(level, minlength=256), 1)
    p, given = reference / reference.sum(), spread[level] / sliced.sum()
    return float(p @ np.log(p / given))
