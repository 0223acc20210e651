"""How fast a repository may be read, and how slow it may be.

    pace, patience = Pace(settings.max_bytes_per_s), Patience(settings.min_bytes_per_s, settings.stall_s)
    patience.came(len(data), waited_s)          # Refused("too_slow") for a drip
    pace.spend(len(data))                       # sleeps where that was more than the limit allows

One of each for a transport, so that many small files count as one large one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.repository.reasons import Refused

BURST_S = 0.25  # a rest may be made up for by this much of the limit
PIECE = 64 << 10  # bytes that are read at a time


class Pace:
    """At most ``bytes_per_s`` (0: no limit) on average: counts the bytes, and sleeps where they came too soon."""

    def __init__(
        self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._paid_until = float("-inf")

    @property
    def piece(self) -> int:
        """How many bytes to read at a time, so that a sleep is short."""
        return min(PIECE, max(512, self._rate // 4)) if self._rate else PIECE

    def spend(self, count: int) -> None:
        """``count`` bytes have come."""
        if not self._rate:
            return
        now = self._clock()
        self._paid_until = max(self._paid_until, now - BURST_S) + count / self._rate
        if self._paid_until > now:
            self._sleep(self._paid_until - now)


class Patience:
    """At least ``bytes_per_s`` on average of each ``stall_s`` of waiting. What we do in between is not waiting."""

    def __init__(self, bytes_per_s: int, stall_s: float) -> None:
        self._rate, self._stall_s = bytes_per_s, stall_s
        self._bytes, self._waited_s = 0, 0.0

    def came(self, count: int, waited_s: float) -> None:
        """``count`` bytes (0: none in that time) after ``waited_s``. Raises ``Refused("too_slow")``."""
        self._bytes += count
        self._waited_s += waited_s
        if self._waited_s < self._stall_s:
            return
        if self._bytes < self._rate * self._waited_s:
            raise Refused(
                "too_slow",
                f"{self._bytes} bytes came in {self._waited_s:.1f} s: if the network is no faster, lower "
                "updates.min_bytes_per_s",
            )
        self._bytes, self._waited_s = 0, 0.0
