"""The bounded queue in front of the workers: overload policies, priorities, and no refusal without an answer."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable

from agent.serving.deadlines import Deadlines
from agent.serving.lane import Lane
from agent.serving.request import Request


class _Place:
    """Of one request in a line. Empty once the request is withdrawn: what waits behind a long job must not be kept."""

    __slots__ = ("line", "request", "ticket")

    def __init__(self, line: _Line, ticket: int, request: Request) -> None:
        self.line, self.ticket = line, ticket
        self.request: Request | None = request


class _Line:
    """What waits in one lane at one priority, oldest first. Empty places stay until they reach the front, or until they
    are more than half of all.
    """

    def __init__(self, priority: int, lane: Lane) -> None:
        self.priority, self.lane = priority, lane
        self.places: deque[_Place] = deque()
        self.live = 0

    def head(self) -> _Place:
        """Of the oldest that waits; the line must not be empty."""
        places = self.places
        while places[0].request is None:
            places.popleft()
        return places[0]

    def tidy(self) -> None:
        if len(self.places) > 2 * self.live + 64:
            self.places = deque(place for place in self.places if place.request is not None)


class Admission:
    """Requests by priority, then in order of arrival. ``refuse(request, code, message)`` is called, without the lock,
    for each refused.

    Codes: ``overloaded`` (rejected, or dropped as the oldest of the lowest priority), ``superseded`` (a newer one of
    the same source came), ``expired``: a timer watches deadlines, so that a request behind a long job, or in one, is
    answered on time.
    """

    def __init__(self, refuse: Callable[[Request, str, str], None], max_bytes: int = 64 * 1024 * 1024) -> None:
        self._refuse = refuse
        self._max_bytes, self._bytes = max_bytes, 0
        self._lines: dict[tuple[int, Lane], _Line] = {}
        self._waiting: dict[Lane, int] = {}
        self._latest: dict[tuple[Lane, str], _Place] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._some = threading.Condition(self._lock)
        self._idle_takers = 0
        self._ticket = itertools.count()
        self._closed = False
        self._deadlines = Deadlines(self._expire)

    def put(self, request: Request, lane: Lane) -> None:
        """Queues a request, or refuses it or another one by the lane's policy. Never blocks."""
        refused: list[tuple[Request, str, str]] = []
        with self._lock:
            if not self._supersede(request, lane, refused):
                while (why := self._full(request, lane)) is not None:
                    victim = self._victim(request, lane)
                    if victim is not None:
                        self._leave(victim)
                    refused.append((victim or request, "overloaded", why))
                    if victim is None:
                        break
                else:
                    self._enter(request, lane)
                    if self._idle_takers:
                        self._some.notify()
        if request.deadline is not None and not any(r is request for r, _, _ in refused):
            self._deadlines.watch(request)
        for r, code, why in refused:
            self._refuse(r, code, why)

    def take(self, timeout: float) -> Request | None:
        """The next request; None after ``timeout`` seconds without one, or once closed and empty."""
        with self._lock:
            self._wait(timeout)
            return self._next(None)

    def take_same(self, model: str, timeout: float = 0.0) -> Request | None:
        """The next request if it is for ``model``: what comes next anyway may be computed together. Waits up to
        ``timeout`` seconds for one to come.
        """
        with self._lock:
            self._wait(timeout)
            request = self._next(model)
            if request is None and self._count:
                self._some.notify()  # for another taker, perhaps
            return request

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Ends the timer and wakes whoever waits; what is queued can still be taken."""
        with self._lock:
            self._closed = True
            self._some.notify_all()
        self._deadlines.close()

    # Under the lock

    def _wait(self, timeout: float) -> None:
        """Until something waits, at most ``timeout`` seconds."""
        if not self._count and not self._closed and timeout > 0:
            self._idle_takers += 1
            try:
                self._some.wait(timeout)
            finally:
                self._idle_takers -= 1

    def _next(self, model: str | None) -> Request | None:
        if not self._count:
            return None
        if len(self._lines) == 1:
            line = next(iter(self._lines.values()))
        else:
            line = min(self._lines.values(), key=lambda x: (-x.priority, x.head().ticket))
        request = line.head().request
        assert request is not None
        if model is not None and request.model != model:
            return None
        line.places.popleft()
        self._leave(request)
        return request

    def _enter(self, request: Request, lane: Lane) -> None:
        key = (request.priority, lane)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(request.priority, lane)
        place = request.place = _Place(line, next(self._ticket), request)
        line.places.append(place)
        line.live += 1
        self._count += 1
        self._waiting[lane] = self._waiting.get(lane, 0) + 1
        self._bytes += len(request.payload)
        if lane.overload == "latest_per_source":
            self._latest[lane, request.source] = place

    def _supersede(self, request: Request, lane: Lane, refused: list[tuple[Request, str, str]]) -> bool:
        """Whether the request has taken the place of its source's older one: that place, not the last, so that a source
        that sends often is served as well as one that sends seldom.
        """
        if lane.overload != "latest_per_source" or (place := self._latest.get((lane, request.source))) is None:
            return False
        older = place.request
        assert older is not None
        refused.append((older, "superseded", f"a newer message came from '{request.source}'"))
        size = self._bytes - len(older.payload) + len(request.payload)
        if place.line.priority != request.priority or (self._count > 1 and size > self._max_bytes):
            self._leave(older)
            return False
        older.place, place.request, request.place, self._bytes = None, request, place, size
        return True

    def _leave(self, request: Request) -> None:
        place: _Place = request.place
        line, lane = place.line, place.line.lane
        request.place = place.request = None
        self._count -= 1
        self._waiting[lane] -= 1
        self._bytes -= len(request.payload)
        if lane.overload == "latest_per_source":
            self._latest.pop((lane, request.source), None)
        line.live -= 1
        if line.live == 0:
            del self._lines[line.priority, lane]
        else:
            line.tidy()

    def _full(self, request: Request, lane: Lane) -> str | None:
        """Why the queue can't take the request, if so."""
        if self._waiting.get(lane, 0) >= lane.max_queue:
            return f"{lane.max_queue} requests wait already (max_queue of '{lane.name}')"
        if self._count and self._bytes + len(request.payload) > self._max_bytes:
            return f"{self._bytes} bytes of requests wait already (limits.max_queued_bytes)"
        return None

    def _victim(self, request: Request, lane: Lane) -> Request | None:
        """Who makes room: the oldest of the lane's lowest priority, if it is the lane's policy to drop, or if that
        priority is below the newcomer's. None: the newcomer itself.
        """
        lines = [line for line in self._lines.values() if line.lane is lane]
        if not lines:
            return None
        lowest = min(lines, key=lambda x: x.priority)
        if lowest.priority > request.priority or (lowest.priority == request.priority and lane.overload == "reject"):
            return None
        return lowest.head().request

    def _expire(self, request: Request) -> None:
        """On the timer's thread: the deadline of a request that nobody has answered has passed."""
        stage = request.ledger.stage
        with self._lock:
            if request.place is not None:
                self._leave(request)
                stage = "queue"
        self._refuse(request, "expired", f"the deadline passed in stage '{stage}'")
