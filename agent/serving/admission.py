"""The bounded queue in front of a worker: overload policies, deadlines, and no refusal without an answer."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.serving.request import Request

Overload = Literal["reject", "drop_oldest", "latest_per_source"]


@dataclass(frozen=True)
class Lane:
    """One route's share of the queue: at most ``max_queue`` requests wait, past that ``overload`` decides."""

    name: str
    max_queue: int = 1000
    overload: Overload = "reject"


class Admission:
    """Requests in order of arrival. ``refuse(request, code, message)`` is called, without the lock, for each refused.

    Codes: ``overloaded`` (rejected, or dropped as the oldest), ``superseded`` (a newer one of the same source came),
    ``expired``. A timer watches deadlines, so that a request behind a long job is refused on time.
    """

    def __init__(self, refuse: Callable[[Request, str, str], None], max_bytes: int = 64 * 1024 * 1024) -> None:
        self._refuse = refuse
        self._max_bytes, self._bytes = max_bytes, 0
        self._queue: deque[tuple[Request, Lane]] = deque()
        self._waiting: dict[Lane, int] = {}
        self._lock = threading.Condition()
        # Weak, so that a long deadline does not keep the payload of a request that was answered long ago.
        self._deadlines: list[tuple[int, int, weakref.ref[Request]]] = []
        self._ticket = itertools.count()
        self._closed = False
        self._timer_wake = threading.Condition()
        self._timer = threading.Thread(target=self._watch_deadlines, name="deadlines", daemon=True)
        self._timer.start()

    def put(self, request: Request, lane: Lane) -> None:
        """Queues a request, or refuses it or another one by the lane's policy. Never blocks."""
        refused: list[tuple[Request, str, str]] = []
        with self._lock:
            if lane.overload == "latest_per_source":
                older = self._remove(lambda r, w: w is lane and r.source == request.source)
                if older is not None:
                    refused.append((older, "superseded", f"a newer message came from '{request.source}'"))
            while (why := self._full(request, lane)) is not None:
                oldest = self._remove(lambda r, w: w is lane) if lane.overload != "reject" else None
                refused.append((oldest or request, "overloaded", why))
                if oldest is None:
                    break
            else:
                self._queue.append((request, lane))
                self._waiting[lane] = self._waiting.get(lane, 0) + 1
                self._bytes += len(request.payload)
                self._lock.notify()
        if request.deadline is not None and not any(r is request for r, _, _ in refused):
            with self._timer_wake:
                heapq.heappush(self._deadlines, (request.deadline, next(self._ticket), weakref.ref(request)))
                self._timer_wake.notify()
        for r, code, why in refused:
            self._refuse(r, code, why)

    def take(self, timeout: float) -> Request | None:
        """The oldest request; None after ``timeout`` seconds without one, or once closed and empty."""
        with self._lock:
            if not self._queue and not self._closed:
                self._lock.wait(timeout)
            if not self._queue:
                return None
            request, lane = self._queue.popleft()
            self._left(request, lane)
            return request

    def __len__(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """Ends the timer and wakes whoever waits; what is queued can still be taken."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        with self._timer_wake:
            self._timer_wake.notify_all()
        self._timer.join()

    def _remove(self, wanted: Callable[[Request, Lane], bool]) -> Request | None:
        for i, (request, lane) in enumerate(self._queue):
            if wanted(request, lane):
                del self._queue[i]
                self._left(request, lane)
                return request
        return None

    def _left(self, request: Request, lane: Lane) -> None:
        self._waiting[lane] -= 1
        self._bytes -= len(request.payload)

    def _full(self, request: Request, lane: Lane) -> str | None:
        """Why the queue can't take the request, if so."""
        if self._waiting.get(lane, 0) >= lane.max_queue:
            return f"{lane.max_queue} requests wait already (max_queue of '{lane.name}')"
        if self._queue and self._bytes + len(request.payload) > self._max_bytes:
            return f"{self._bytes} bytes of requests wait already (limits.max_queued_bytes)"
        return None

    def _watch_deadlines(self) -> None:
        while True:
            with self._timer_wake:
                if self._closed:
                    return
                now = time.monotonic_ns()
                if not self._deadlines:
                    self._timer_wake.wait()
                    continue
                if self._deadlines[0][0] > now:
                    self._timer_wake.wait((self._deadlines[0][0] - now) / 1e9)
                    continue
                late = heapq.heappop(self._deadlines)[2]()
            if late is not None and self._withdraw(late):
                self._refuse(late, "expired", "the deadline passed in stage 'queue'")

    def _withdraw(self, request: Request) -> bool:
        """Takes a request out of the queue; whether it still waited."""
        with self._lock:
            return self._remove(lambda r, w: r is request) is not None
