"""Latency histograms that can be merged: log-linear buckets, as HdrHistogram's.

A value of n bits falls into one of 16 equal buckets of its power of two: at most 1/16 off, whatever its size. Two
histograms are merged by adding their counts, so a fleet's percentiles are as true as a device's.
"""

from __future__ import annotations

_SUB = 4  # 2^4 buckets a power of two


class Histogram:
    """Counts of non-negative integers, for example microseconds."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.sum = 0
        self.max = 0

    def add(self, value: int) -> None:
        """Counts one value."""
        value = max(0, value)
        bucket = _bucket(value)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        self.sum += value
        self.max = max(self.max, value)

    def merge(self, other: Histogram) -> None:
        """Adds another histogram's counts."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def percentile(self, p: float) -> int:
        """The upper end of the bucket of the p-th percentile (0..100), at most the greatest value; 0 if empty."""
        rank, seen = max(1, -(-self.total * p // 100)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return min(self.max, _upper(bucket))
        return 0

    def summary(self) -> dict[str, int]:
        """count, p50, p90, p99, p99.9 and max."""
        named = {f"p{p:g}": self.percentile(p) for p in (50, 90, 99, 99.9)}
        return {"count": self.total, **named, "max": self.max}


def _bucket(value: int) -> int:
    if value < 1 << _SUB:
        return value
    shift = value.bit_length() - _SUB - 1
    return ((shift + 1) << _SUB) + (value >> shift) - (1 << _SUB)


def _upper(bucket: int) -> int:
    if bucket < 1 << _SUB:
        return bucket
    shift = (bucket >> _SUB) - 1
    return (((bucket & ((1 << _SUB) - 1)) + (1 << _SUB) + 1) << shift) - 1
