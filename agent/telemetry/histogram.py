"""Latency histograms that can be merged: log-linear buckets, as HdrHistogram's.

A value of n bits falls into one of 16 equal buckets of its power of two: at most 1/16 off, whatever its size. Two
histograms are merged by adding their counts, so a fleet's percentiles are as true as a device's:

    ours.merge(Histogram.unpack(theirs.pack()))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SUB = 4  # 2^4 buckets a power of two
_BITS = 48  # longer values fall into the last bucket: 3 days, in nanoseconds
BUCKETS = (_BITS - _SUB + 1) << _SUB


class Histogram:
    """Counts of non-negative integers, for example nanoseconds. Not safe to change from two threads at once."""

    __slots__ = ("counts", "max", "sum")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.sum = 0
        self.max = 0

    def add(self, value: int) -> None:
        """Counts one value; a negative one as 0."""
        value = value if value > 0 else 0
        shift = value.bit_length() - _SUB - 1
        try:
            self.counts[(shift << _SUB) + (value >> shift) if shift > 0 else value] += 1
        except IndexError:
            self.counts[-1] += 1
        self.sum += value
        self.max = value if value > self.max else self.max  # max() would cost more than all else here

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def copy(self) -> Histogram:
        """One that changes no more."""
        other = Histogram.__new__(Histogram)
        other.counts, other.sum, other.max = self.counts.copy(), self.sum, self.max
        return other

    def merge(self, other: Histogram) -> None:
        """Adds another histogram's counts."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def since(self, earlier: Histogram) -> Histogram:
        """What was counted after ``earlier``, a copy of this histogram. The greatest value is known to its bucket."""
        left = Histogram.__new__(Histogram)
        left.counts = [a - b for a, b in zip(self.counts, earlier.counts, strict=True)]
        left.sum = self.sum - earlier.sum
        last = next((b for b in range(BUCKETS - 1, -1, -1) if left.counts[b]), None)
        left.max = 0 if last is None else self.max if last == BUCKETS - 1 else min(self.max, upper(last))
        return left

    def above(self, value: int) -> int:
        """How many values lie in buckets that begin above ``value``."""
        return sum(self.counts[bucket_of(value) + 1 :])

    def percentile(self, p: float) -> int:
        """The upper end of the bucket of the p-th percentile (0..100), at most the greatest value; 0 if empty."""
        return self.percentiles(p)[0]

    def percentiles(self, *wanted: float) -> list[int]:
        """``percentile`` of each; they must ascend."""
        total, seen, bucket, found = self.total, 0, -1, []
        for p in wanted:
            rank = max(1, -(-total * p // 100))
            while seen < rank and bucket < BUCKETS - 1:
                bucket += 1
                seen += self.counts[bucket]
            found.append(min(self.max, upper(bucket)) if bucket < BUCKETS - 1 else self.max)
        return found

    def below(self, bounds: Sequence[int]) -> list[int]:
        """How many values are at most each of ``bounds``, which must ascend and be ends of buckets (``upper``)."""
        counts, start, seen = [], 0, 0
        for bound in bounds:
            end = bucket_of(bound) + 1
            seen += sum(self.counts[start:end])
            start = end
            counts.append(seen)
        return counts

    def pack(self) -> dict[str, Any]:
        """As JSON can carry it: ``sum``, ``max``, and ``buckets``: of each that is not empty how many buckets it lies
        behind the one before (the first: its number), then its count.
        """
        packed, last = [], 0
        for bucket, count in enumerate(self.counts):
            if count:
                packed += [bucket - last, count]
                last = bucket
        return {"sum": self.sum, "max": self.max, "buckets": packed}

    @staticmethod
    def unpack(packed: Any) -> Histogram:
        """What ``pack`` made. Raises ``ValueError`` for anything else: it may come from another device."""
        histogram, bucket = Histogram(), 0
        try:
            numbers = packed["buckets"]
            if not all(type(n) is int and n >= 0 for n in (packed["sum"], packed["max"], *numbers)):
                raise ValueError("not all are whole numbers of 0 or more")
            for gap, count in zip(numbers[::2], numbers[1::2], strict=True):
                bucket += gap
                histogram.counts[bucket] += count
        except (KeyError, TypeError, IndexError, ValueError) as e:
            raise ValueError(f"not a packed histogram: {e}") from e
        histogram.sum, histogram.max = packed["sum"], packed["max"]
        return histogram


def bucket_of(value: int) -> int:
    """The number of the bucket that ``value`` falls into."""
    shift = max(0, value.bit_length() - _SUB - 1)
    return min(BUCKETS - 1, (shift << _SUB) + (value >> shift))


def upper(bucket: int) -> int:
    """The greatest value that falls into a bucket; of the last one, that it is meant for."""
    if bucket < 1 << _SUB:
        return bucket
    shift = (bucket >> _SUB) - 1
    return (((bucket & ((1 << _SUB) - 1)) + (1 << _SUB) + 1) << shift) - 1
