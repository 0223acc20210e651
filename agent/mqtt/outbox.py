"""Replies that are stored before they are published, and forgotten when the broker has confirmed them.

Once a reply is stored, its input may be acknowledged: from then on the reply survives the death of the agent, and a
broker that is away or that forgets. Order holds: while there is a backlog, what is new queues behind it.

Without a backlog, a reply goes out from memory as soon as its commit is done. After a lost connection, or a restart, a
thread reads what is not confirmed from the disk and publishes it in order, marked with the MQTT 5 user properties
``replay`` (``true``) and ``stored_at`` (Unix microseconds). In the first seconds of a connection, one reply is under
way at a time, and one that nobody subscribes to is tried again: a broker that forgot its messages forgot its
subscribers, too, and those need a moment to come back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from agent.journal import Journal, Record
from agent.logs import Sparing
from agent.mqtt.messages import Confirmed, Outgoing
from agent.mqtt.outflow import NO_CONNECTION, NO_READER

log = logging.getLogger(__name__)
WINDOW = 64  # replies under way, without the broker's confirmation
_PAUSE_S = 0.25  # until a reply that nobody subscribes to, or a disk that can't be read, is tried again
_LOG_EVERY_S = 10.0


class Publisher(Protocol):
    """What is used of ``agent.mqtt.session.Session``."""

    @property
    def connected(self) -> bool: ...
    def publish(
        self, message: Outgoing, confirmed: Confirmed = ..., expires: float | None = ..., once: bool = ...
    ) -> None: ...


class _Head(msgspec.Struct, array_like=True):
    """A message without its payload, as it is stored."""

    topic: str
    qos: int
    correlation: bytes | None
    response_topic: str | None
    content_type: str | None
    user: tuple[tuple[str, str], ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


class Outbox:
    """``attach`` it to a session before use, and tell it of each connection with ``connected``.

    journal: where replies are stored; the outbox counts what it drops (give it ``dropped``), and closes it.
    replay_rate: replies of a backlog a second, at most; 0: as fast as the broker confirms. subscriber_wait_s: how long
    after a new connection replies wait for a subscriber. clock: monotonic seconds.
    """

    def __init__(
        self,
        open_journal: Callable[[Callable[[str, int], None]], Journal],
        replay_rate: float = 0.0,
        subscriber_wait_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._wait_s, self._clock = replay_rate, subscriber_wait_s, clock
        self._lock = threading.Condition(threading.RLock())
        self._session: Publisher | None = None
        self._counts = dict.fromkeys(("stored", "replayed", "unavailable", "dropped_bytes", "dropped_age",
                                      "dropped_refused"), 0)  # fmt: skip
        self._logged = Sparing(_LOG_EVERY_S, clock)
        self._journal = open_journal(self._dropped)
        self._flying: set[int] = set()
        self._sent = 0  # up to this record, all have been published on this connection
        self._newest = self._journal.last
        self._live = False  # no backlog: what is new goes out at once
        self._probing_until = self._resume_at = clock()
        self._closing = False
        if self._journal.count:
            log.info("%d stored replies wait for the broker", self._journal.count)
        self._drainer = threading.Thread(target=self._drain, name="outbox", daemon=True)
        self._drainer.start()

    def attach(self, session: Publisher) -> None:
        """The session that replies go to."""
        self._session = session

    def connected(self) -> None:
        """A connection has come about."""
        with self._lock:
            self._probing_until = self._clock() + self._wait_s
            self._resume_at = self._clock()
            self._lock.notify_all()

    def put(self, message: Outgoing, stored: Callable[[bool], None]) -> None:
        """Stores a reply of QoS 1, then publishes it.

        stored(True) once it is safe; stored(False) where it can't be stored: then it is the caller's to publish. On the
        journal's thread, in order.
        """
        head = _Head(message.topic, message.qos, message.correlation, message.response_topic, message.content_type,
                     message.user)  # fmt: skip
        self._journal.put(_encoder.encode(head), message.payload, lambda seq: self._stored(seq, message, stored))

    def quiet(self, timeout: float) -> bool:
        """Waits until nothing is under way to the broker; whether that took no longer than ``timeout`` seconds. What
        only waits on the disk is left for the next start.
        """
        with self._lock:
            return self._lock.wait_for(lambda: not self._flying, timeout)

    def stats(self) -> dict[str, Any]:
        """Counters since the start; and what waits now."""
        with self._lock:
            return {
                "waiting": self._journal.count,
                "waiting_bytes": self._journal.bytes,
                "corrupt": self._journal.corrupt,
                "failure": self._journal.failure,
                **self._counts,
            }

    def close(self) -> None:
        """Stores what was put; what is not confirmed is published at the next start."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._drainer.join()
        self._journal.close()

    # On the journal's thread

    def _stored(self, seq: int | None, message: Outgoing, stored: Callable[[bool], None]) -> None:
        if seq is None:
            self._count("unavailable", 1, "can't be stored, and are published without being safe")
            stored(False)
            return
        stored(True)
        with self._lock:
            self._counts["stored"] += 1
            self._newest = seq
            if seq <= self._sent:  # the drainer found it on the disk already
                return
            if self._live and self._may_publish():
                self._publish(seq, message)
            else:
                self._live = False
                self._lock.notify_all()

    def _dropped(self, reason: str, count: int) -> None:
        bound = "outbox.max_bytes" if reason == "bytes" else "outbox.max_age_s"
        self._count(f"dropped_{reason}", count, f"were dropped, the oldest first ({bound})")

    def _count(self, counter: str, count: int, what: str) -> None:
        """Counts, and says so at most every ten seconds."""
        with self._lock:
            self._counts[counter] += count
            new = self._logged.due(counter, count)
        if new:
            log.error("%d replies of outbox routes %s", new, what)

    # Under the lock

    def _may_publish(self) -> bool:
        window = 1 if self._clock() < self._probing_until else WINDOW
        return self._session is not None and self._session.connected and len(self._flying) < window

    def _publish(self, seq: int, message: Outgoing, replay: bool = False) -> None:
        assert self._session is not None
        self._flying.add(seq)
        self._sent = self._journal.keep_until = seq
        self._session.publish(message, lambda reason: self._confirmed(seq, message.topic, replay, reason), once=True)

    def _confirmed(self, seq: int, topic: str, replay: bool, reason: str | None) -> None:
        with self._lock:
            self._flying.discard(seq)
            now = self._clock()
            if reason == NO_CONNECTION or (reason == NO_READER and now < self._probing_until):
                self._sent = self._journal.keep_until = min(self._sent, seq - 1)
                self._live = False
                self._resume_at = now + _PAUSE_S
            else:
                self._journal.remove(seq)
                self._counts["replayed"] += replay and reason is None
            self._lock.notify_all()
        if reason not in (None, NO_CONNECTION, NO_READER):
            self._count("dropped_refused", 1, f"are refused by the broker: {reason} (the last on '{topic}')")

    # The draining thread

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._wait_for_work():
                    return
                after, newest = self._sent, self._newest
                room = (1 if self._clock() < self._probing_until else WINDOW) - len(self._flying)
            records = self._journal.read(after, room)
            if records is None:
                with self._lock:
                    self._resume_at = self._clock() + _PAUSE_S
            elif not records:
                with self._lock:
                    if self._sent == after and self._newest == newest:
                        self._sent, self._live = max(after, newest), True
            else:
                self._replay(records, after)

    def _wait_for_work(self) -> bool:
        """Until there is a backlog that may be published now; whether it goes on at all."""
        while not self._closing:
            pause = self._resume_at - self._clock()
            if self._live or not self._may_publish():
                self._lock.wait(_PAUSE_S if self._flying and not self._live else None)
            elif pause > 0:
                self._lock.wait(pause)
            else:
                return True
        return False

    def _replay(self, records: list[Record], after: int) -> None:
        for record in records:
            message = _message(record)
            with self._lock:
                if self._sent != after or not self._may_publish() or self._closing:
                    return  # lost meanwhile, and begun again
                after = record.seq
                if message is None:
                    self._sent = after
                    self._journal.remove(after)
                    continue
                self._publish(after, message, replay=True)
                if self._rate:
                    self._resume_at = self._clock() + 1 / self._rate
                    return


def _message(record: Record) -> Outgoing | None:
    """None where it is none: another program's file."""
    try:
        head = _decoder.decode(record.head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.error("record %d of the outbox is no message", record.seq)
        return None
    marks = (("replay", "true"), ("stored_at", str(record.stored_us)))
    return Outgoing(head.topic, record.body, head.qos, False, head.correlation, head.response_topic, head.content_type,
                    (*head.user, *marks))  # fmt: skip
