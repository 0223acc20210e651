"""From a message to a request, and from its reply to the acknowledgement, such that nothing is lost.

The order: receive (unacknowledged) -> serve -> publish the reply at QoS 1 -> the broker confirms it -> acknowledge
the input.
If the process or a connection dies anywhere before the end, the broker delivers the input again. A message that comes
again is recognized, and answered from a small cache or together with the copy that is still under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from agent.mqtt.routes import Filter, can_publish, fill
from agent.mqtt.session import Incoming, Outgoing, Session
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.telemetry.stats import Stats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """Messages that match ``filter`` go to ``model``. ``{1}`` … in ``model`` and ``publish`` are its wildcards."""

    filter: Filter
    model: str
    publish: str
    lane: Lane
    qos: int = 1
    deadline_ms: int | None = None
    content_type: str | None = None
    id_wildcard: int = 0  # which wildcard, if any, is the request's id


@dataclass(frozen=True)
class _Reply:
    payload: bytes
    content_type: str


class Delivery:
    """Owns the messages between their arrival and their acknowledgement. ``attach`` it to a session before use.

    refuse(request, code, message) answers with an error; it is called where the broker will not take a reply. At most
    ``reply_cache`` replies of together ``cache_bytes`` are kept for repetitions.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        admission: Admission,
        stats: Stats,
        refuse: Callable[[Request, str, str], None],
        reply_cache: int,
        cache_bytes: int,
    ) -> None:
        self._routes, self._admission, self._stats, self._refuse = routes, admission, stats, refuse
        self._cache = _Cache(reply_cache, cache_bytes)
        self._pending: dict[Hashable, list[Incoming]] = {}
        self._session: Session | None = None
        self.draining = False

    def attach(self, session: Session) -> None:
        """The session that messages come from and replies go to."""
        self._session = session

    def receive(self, message: Incoming) -> None:
        """Takes a message; called on the network thread. Never raises: an exception would end that thread."""
        if self.draining:
            return  # unacknowledged, so that the broker gives it to the next process
        try:
            self._receive(message)
        except Exception:
            log.exception("a message on '%s' could not be taken", message.topic)
            self._done([message])

    def _receive(self, message: Incoming) -> None:
        self._stats.count("received")
        for route in self._routes:
            found = route.filter.match(message.topic)
            if found is not None:
                break
        else:
            log.warning("no route for '%s'", message.topic)
            self._done([message])
            return
        topic = message.response_topic
        if topic is None or not can_publish(topic):
            topic = fill(route.publish, found)
        key = _key(message, topic)
        if key in self._pending:
            self._stats.count("duplicates")
            self._pending[key].append(message)
            return
        # Without a correlation, ids are used again: only what the broker marks as repeated is the same message.
        known = self._cache.get(key) if message.duplicate or message.correlation is not None else None
        self._pending[key] = [message]
        if known is not None:
            self._stats.count("duplicates")
            self._publish(key, topic, route.qos, message, known, None)
            return
        request = Request(
            message.payload,
            fill(route.model, found),
            lambda payload, content_type, request: self._publish(
                key, topic, route.qos, message, _Reply(payload, content_type), request
            ),
            message.content_type or route.content_type,
            found[route.id_wildcard - 1] if route.id_wildcard else None,
            message.topic,
        )
        request.ledger.source_unix_us = _whole(message.user.get("source_timestamp_us"))
        limits = [ms for ms in (route.deadline_ms, message.expiry_s and message.expiry_s * 1000) if ms]
        if limits:
            request.deadline = request.ledger.received + min(limits) * 1_000_000
        self._admission.put(request, route.lane)

    def _publish(
        self, key: Hashable, topic: str, qos: int, message: Incoming, reply: _Reply, request: Request | None
    ) -> None:
        assert self._session is not None
        # Who was refused may try again; what came at QoS 0 is never repeated.
        if request is not None and not request.refusal and (message.qos or message.correlation is not None):
            self._cache.put(key, reply)

        def confirmed(reason: str | None) -> None:
            if reason is not None and request is not None and not request.refusal:
                # Perhaps it takes a short error in place of the reply, so that the sender need not wait in vain.
                self._cache.drop(key)
                request.reopen()
                self._refuse(request, "undeliverable", f"the broker does not take the reply: {reason}")
                return
            waiting = self._pending.pop(key, [])
            if reason is not None:
                # The broker will not take it however often it is tried; keeping the input would only block the rest.
                log.error("the broker refuses the reply on '%s': %s", topic, reason)
                self._stats.count("publish_failed")
            elif request is not None and not request.refusal:
                request.ledger.stamp("publish")
                self._stats.answered(request.model, request.ledger)
            self._done(waiting)

        self._session.publish(
            Outgoing(topic, reply.payload, qos, correlation=message.correlation, content_type=reply.content_type),
            confirmed,
        )

    def _done(self, messages: Sequence[Incoming]) -> None:
        assert self._session is not None
        for message in messages:
            self._session.done(message)

    def quiet(self, timeout: float) -> bool:
        """Waits until every reply is confirmed; whether that took no longer than ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while self._pending and time.monotonic() < until:
            time.sleep(0.005)
        return not self._pending


class _Cache:
    """Replies by key, the oldest dropped past either bound."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size, self._held = count, size, 0
        self._replies: OrderedDict[Hashable, _Reply] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> _Reply | None:
        return self._replies.get(key)

    def put(self, key: Hashable, reply: _Reply) -> None:
        with self._lock:
            self._pop(key)
            self._replies[key] = reply
            self._held += len(reply.payload)
            while len(self._replies) > self._count or self._held > self._size:
                self._pop(next(iter(self._replies)))

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._pop(key)

    def _pop(self, key: Hashable) -> None:
        reply = self._replies.pop(key, None)
        if reply is not None:
            self._held -= len(reply.payload)


def _key(message: Incoming, topic: str) -> Hashable:
    """What makes two messages the same: the sender's correlation, or else the broker's id on this session; and the
    payload, because a sender may give every message the same correlation, for example its own name.
    """
    if message.correlation is None and message.qos == 0:
        return ("unique", id(message))
    name = message.mid if message.correlation is None else message.correlation
    return (message.topic, topic, name, blake2b(message.payload, digest_size=16).digest())


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
