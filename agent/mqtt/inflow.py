"""Messages from their arrival to their acknowledgement: in order of arrival, and only on the connection that brought
them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from agent.mqtt import packets
from agent.mqtt.link import Link
from agent.mqtt.messages import Incoming

log = logging.getLogger(__name__)


class Inflow:
    """Of one session. on_message is called on the network thread; ``done`` may be called from any.

    mosquitto 2.0 exceeds receive_maximum on a session that goes on, by as much again with each PUBACK: what comes past
    it is held here, up to ``most_held`` bytes of payloads; past them on_message gets what comes all the same.
    """

    def __init__(self, on_message: Callable[[Incoming], None], receive_maximum: int, most_held: int) -> None:
        self._on_message, self._receive_maximum, self._most_held = on_message, receive_maximum, most_held
        self._lock = threading.Lock()
        self._link: Link | None = None
        self.epoch = 0
        self._unacked: deque[Incoming] = deque()
        self._held: deque[Incoming] = deque()  # the youngest of them, which on_message has not seen yet
        self._held_bytes = 0

    def begin(self, link: Link) -> None:
        """A new connection: ids of the old one mean nothing on it; what was not acknowledged comes again."""
        with self._lock:
            self.epoch += 1
            self._link = link
            self._unacked.clear()
            self._held.clear()
            self._held_bytes = 0

    def end(self) -> None:
        """The connection is lost."""
        with self._lock:
            self._link = None

    def take(self, message: Incoming) -> None:
        """A message has come."""
        with self._lock:
            self._unacked.append(message)
            past = message.qos and (self._held or len(self._unacked) > self._receive_maximum)
            if past and self._held_bytes + len(message.payload) <= self._most_held:
                message.held_since = time.monotonic_ns()
                self._held.append(message)
                self._held_bytes += len(message.payload)
                return
        self._hand(message)

    def hand_on(self) -> None:
        """What was held, as far as receive_maximum goes."""
        while self._held:
            with self._lock:
                under_way = len(self._unacked) - len(self._held)
                if not self._held or under_way >= self._receive_maximum:
                    return
                message = self._held.popleft()
                self._held_bytes -= len(message.payload)
            self._hand(message)

    def done(self, message: Incoming) -> None:
        """Acknowledges a message, as soon as all that came before it are done."""
        acks: list[bytes] = []
        with self._lock:
            message.finished = True
            message.payload = b""  # it may wait long for those before it
            unacked = self._unacked
            while unacked and unacked[0].finished:
                first = unacked.popleft()
                if first.qos and first.epoch == self.epoch:
                    acks.append(packets.puback(first.mid))
            link = self._link
            if acks and link is not None:
                link.send(b"".join(acks))
        if acks and link is not None:
            if self._held:
                link.wake()
            link.flush()

    def _hand(self, message: Incoming) -> None:
        try:
            self._on_message(message)
        except Exception:  # whatever it is, it must not cost the connection
            log.exception("a message on '%s' could not be taken", message.topic)
            self.done(message)
