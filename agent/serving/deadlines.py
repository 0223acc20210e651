"""The timer that answers on time: each request that nobody has answered by its deadline is handed back."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable

from agent.serving.request import Request

_LONGEST_NS = 3_600 * 10**9  # of one wait: what a sender asks for may be more than a lock can wait


class Deadlines:
    """``late(request)`` is called on a thread of its own for each request that passes its deadline unsettled."""

    def __init__(self, late: Callable[[Request], None]) -> None:
        self._late = late
        # Weak, so that a long deadline does not keep the payload of a request that was answered long ago.
        self._heap: list[tuple[int, int, weakref.ref[Request]]] = []
        self._ticket = itertools.count()
        self._sweep_at = 1024  # entries of requests long answered are swept out when the heap reaches this
        self._closed = False
        self._wake = threading.Condition()
        self._timer = threading.Thread(target=self._watch, name="deadlines", daemon=True)
        self._timer.start()

    def watch(self, request: Request) -> None:
        """Takes a request with a deadline."""
        assert request.deadline is not None
        with self._wake:
            soonest = not self._heap or request.deadline < self._heap[0][0]
            heapq.heappush(self._heap, (request.deadline, next(self._ticket), weakref.ref(request)))
            if len(self._heap) >= self._sweep_at:
                self._sweep()
            if soonest:
                self._wake.notify()

    def close(self) -> None:
        """Ends the timer."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._timer.join()

    def _sweep(self) -> None:
        def open_(entry: tuple[int, int, weakref.ref[Request]]) -> bool:
            request = entry[2]()
            return request is not None and not request.settled

        self._heap = [entry for entry in self._heap if open_(entry)]
        heapq.heapify(self._heap)
        self._sweep_at = max(1024, 2 * len(self._heap))

    def _watch(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                if not self._heap:
                    self._wake.wait()
                    continue
                left = self._heap[0][0] - time.monotonic_ns()
                if left > 0:
                    self._wake.wait(min(left, _LONGEST_NS) / 1e9)
                    continue
                request = heapq.heappop(self._heap)[2]()
            if request is not None and not request.settled:
                self._late(request)
            del request  # or it would live until the next one is late
