"""How many messages a second each source may send: a token bucket each, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """``per_s`` messages a second for each source, and ``burst`` at once.

    At most ``sources`` buckets are kept. A source that was quiet for so long that its bucket is full again makes room
    for a new one; where there is none such, new sources share one bucket, so that inventing names gains nothing.
    For one thread. clock: seconds.
    """

    def __init__(self, per_s: float, burst: int, sources: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._most, self._clock = per_s, burst, sources, clock
        # When each bucket will be full again (the generic cell rate algorithm); the longest unused first.
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._shared = 0.0

    def allow(self, source: str) -> bool:
        """Whether the source may send now; if so, it has."""
        now = self._clock()
        buckets = self._full_at
        own = source in buckets or len(buckets) < self._most
        if not own and next(iter(buckets.values())) <= now:
            buckets.popitem(last=False)
            own = True
        full_at = max(now, buckets.get(source, now) if own else self._shared) + 1 / self._per_s
        if full_at - now > self._burst / self._per_s:
            return False
        if own:
            buckets[source] = full_at
            buckets.move_to_end(source)
        else:
            self._shared = full_at
        return True
