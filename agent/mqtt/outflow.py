"""Publications of QoS 1, from ``put`` to the broker's confirmation, over as many connections as that takes."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from agent.mqtt import packets
from agent.mqtt.link import Link
from agent.mqtt.messages import Confirmed, Outgoing

log = logging.getLogger(__name__)
NO_CONNECTION, NO_READER = "no connection", "no matching subscribers"
_BLAMES = 3  # lost connections that tell a bad publication from a bad line


@dataclass(slots=True)
class Publication:
    """A message and who is told of its fate; see ``Session.publish``."""

    message: Outgoing
    confirmed: Confirmed
    expires: float | None = None  # time.monotonic
    once: bool = False
    blamed: int = 0  # connections lost while it alone was under way


class Outflow:
    """In order; no more under way than the broker takes. Of one session; ``put`` may be called from any thread."""

    def __init__(self, v5: bool) -> None:
        self.v5 = v5
        self._lock = threading.Lock()
        self._link: Link | None = None
        self.largest = 0  # bytes of a packet that this broker takes
        self._queued: deque[Publication] = deque()  # waiting for a connection or for the broker's quota
        self._inflight: OrderedDict[int, Publication] = OrderedDict()  # sent, but not confirmed
        self._quota = self._full_quota = 0
        self._losses = 0  # connections lost in a row on which the broker confirmed nothing of what was under way
        self._careful = 0  # publications to be sent one by one, because one of them seems to end each connection
        self._mid = 0

    def put(self, publication: Publication) -> str | None:
        """Sends it, or keeps it for later; why it can do neither. It is the caller's to flush the link."""
        with self._lock:
            try:
                if self._quota > 0 and not self._queued:
                    self._send(publication)
                elif publication.once and self._link is None:
                    return NO_CONNECTION
                else:
                    packets.publish(publication.message, 1, self.v5)  # raises where it can't be sent at all
                    self._queued.append(publication)
            except ValueError as e:
                return str(e)
        return None

    def begin(self, link: Link, quota: int, largest: int, resumed: bool) -> None:
        """A new connection: sends again what was not confirmed, in order; marked, where the broker's session lives."""
        with self._lock:
            self._full_quota, self.largest = quota, largest
            if self._careful:
                quota = 1
            again = list(self._inflight.items())
            self._inflight = OrderedDict(again[:quota])
            self._queued.extendleft(publication for _, publication in reversed(again[quota:]))
            for mid, publication in self._inflight.items():
                link.send(packets.publish(publication.message, mid, self.v5, resumed))
            self._quota = quota - len(self._inflight)
            self._link = link
            failed = self._drain()
        _tell(failed)

    def end(self) -> None:
        """The connection is lost."""
        with self._lock:
            self._link = None
            self._quota = 0
            lost = [p for p in (*self._inflight.values(), *self._queued) if p.once]
            if lost:
                self._inflight = OrderedDict((mid, p) for mid, p in self._inflight.items() if not p.once)
                self._queued = deque(p for p in self._queued if not p.once)
            given_up = self._blame()
        _tell([(publication, NO_CONNECTION) for publication in lost])
        if given_up is not None:
            log.error("the broker ends each connection on which '%s' is published; given up", given_up.message.topic)
            given_up.confirmed("it ends the connection over it")

    def suspect(self) -> None:
        """The broker says that it ends the connection over something we sent."""
        self._losses = _BLAMES

    def confirmed(self, mid: int, reason: int) -> None:
        """The broker's PUBACK."""
        with self._lock:
            publication = self._inflight.pop(mid, None)
            if publication is None:
                return
            self._losses = 0
            self._quota += 1
            if self._careful:
                self._careful -= 1
                if not self._careful:
                    self._quota += self._full_quota - 1
            failed = self._drain() if self._queued else []
        _tell(failed)
        if reason >= packets.FAILURE:
            publication.confirmed(packets.reason_name(reason))
        else:
            publication.confirmed(NO_READER if publication.once and reason == packets.NO_SUBSCRIBERS else None)

    def free_id(self) -> int:
        """A packet id that nothing under way has."""
        with self._lock:
            return self._next_id()

    # Under the lock

    def _next_id(self) -> int:
        self._mid = self._mid % 65535 + 1
        while self._mid in self._inflight:
            self._mid = self._mid % 65535 + 1
        return self._mid

    def _send(self, publication: Publication) -> None:
        """There is quota, and a link. Raises ValueError where it never can."""
        assert self._link is not None
        mid = self._next_id()
        packet = packets.publish(publication.message, mid, self.v5)
        if len(packet) > self.largest:
            raise ValueError(f"{len(packet)} bytes, and the broker takes packets of {self.largest} at most")
        self._inflight[mid] = publication
        self._quota -= 1
        self._link.send(packet)

    def _drain(self) -> list[tuple[Publication, str]]:
        """Sends what waits, as far as the quota goes; those that can't be sent, with the reason."""
        failed: list[tuple[Publication, str]] = []
        now = time.monotonic()
        while self._queued and self._quota > 0:
            publication = self._queued.popleft()
            if publication.expires is not None and now > publication.expires:
                failed.append((publication, "expired"))
                continue
            try:
                self._send(publication)
            except ValueError as e:  # this broker takes less than the one before
                failed.append((publication, str(e)))
        return failed

    def _blame(self) -> Publication | None:
        """After a lost connection: the publication that ends every one, once it is found. Sent again and again, it
        would keep all others from the broker for ever.
        """
        if not self._inflight:
            return None
        self._losses += 1
        if not self._careful:
            if self._losses >= _BLAMES:
                self._careful = len(self._inflight) + len(self._queued)
            return None
        mid, publication = next(iter(self._inflight.items()))
        publication.blamed += 1
        if publication.blamed < _BLAMES:
            return None
        self._careful -= 1
        return self._inflight.pop(mid)


def _tell(failed: list[tuple[Publication, str]]) -> None:
    for publication, why in failed:
        publication.confirmed(why)
