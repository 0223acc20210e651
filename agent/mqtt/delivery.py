"""From a message to a request, and from its reply to the acknowledgement, such that nothing is lost.

The order: receive (unacknowledged) -> serve -> publish the reply at QoS 1 -> the broker confirms it -> acknowledge
the input.
If the process or a connection dies anywhere before the end, the broker delivers the input again. A message that comes
again is recognized, and answered from a small cache or together with the copy that is still under way. On routes with
an outbox, to be stored counts as confirmed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.mqtt.gate import Gate
from agent.mqtt.messages import SEALED, Incoming, Outgoing
from agent.mqtt.outbox import Outbox
from agent.mqtt.routes import MAX_LEVELS, Filter, fill
from agent.mqtt.session import Session
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request, digest
from agent.telemetry.stats import Stats
from agent.wire import oip

if TYPE_CHECKING:
    from agent.wire.sealed import Opened, Receiver

log = logging.getLogger(__name__)
_TOPICS_REMEMBERED = 4096
_LONGEST_REMEMBERED = 256  # characters; a topic may have 65,535


@dataclass(frozen=True)
class Route:
    """Messages that match ``filter`` go to ``model``. ``{1}`` … in ``model`` and ``publish`` are its wildcards.

    receiver: opens messages that are encrypted, on a route that takes no others.
    """

    filter: Filter
    model: str
    publish: str
    lane: Lane
    qos: int = 1
    deadline_ms: int | None = None
    content_type: str | None = None
    id_wildcard: int = 0  # which wildcard, if any, is the request's id
    receiver: Receiver | None = None
    outbox: bool = False


@dataclass(frozen=True)
class _Reply:
    payload: bytes
    content_type: str


class Delivery:
    """Owns the messages between their arrival and their acknowledgement. ``attach`` it to a session before use.

    refuse(request, code, message) answers with an error; it is called where the broker will not take a reply. At most
    ``reply_cache`` replies of together ``cache_bytes`` are kept for repetitions. gate: what a message may be.
    outbox: for the replies of routes that say so.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        admission: Admission,
        stats: Stats,
        refuse: Callable[[Request, str, str], None],
        reply_cache: int,
        cache_bytes: int,
        gate: Gate | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._routes, self._admission, self._stats, self._refuse = routes, admission, stats, refuse
        self._gate, self._outbox = gate or Gate(), outbox
        self._cache = _Cache(reply_cache, cache_bytes)
        self._pending: dict[Hashable, _Exchange] = {}
        self._found: dict[str, tuple[Route, tuple[str, ...]] | None] = {}
        self._session: Session | None = None
        self.draining = False

    def attach(self, session: Session) -> None:
        """The session that messages come from and replies go to."""
        self._session = session

    def receive(self, message: Incoming) -> None:
        """Takes a message; called on the network thread."""
        if self.draining:
            return  # unacknowledged, so that the broker gives it to the next process
        self._stats.count("received")
        found = self._route(message.topic)
        if found is None:
            log.warning("no route for '%s'", message.topic)
            self.session.done(message)
            return
        route, wildcards = found
        topic = self._gate.reply_topic(message) or fill(route.publish, wildcards)
        if topic.count("/") >= MAX_LEVELS:  # a broker would end the connection over the reply, again and again
            log.warning("a message on '%.80s…' is not served: its reply's topic has too many levels", message.topic)
            self._stats.count("publish_failed")
            self.session.done(message)
            return
        model = fill(route.model, wildcards)
        content_type = message.content_type or route.content_type
        name = digest(message.payload, model, content_type)
        key = _key(message, topic, name)
        exchange = self._pending.get(key)
        if exchange is not None:
            self._stats.count("duplicates")
            exchange.messages.append(message)
            if self._pending.get(key) is not exchange:  # confirmed meanwhile, on another thread
                self.session.done(message)
            return
        exchange = self._pending[key] = _Exchange(self, key, topic, route, message)
        # Without a correlation, ids are used again: only what the broker marks as repeated is the same message.
        if message.duplicate or message.correlation is not None:
            known = self._cache.get(key)
            if known is not None:
                self._stats.count("duplicates")
                self._publish(exchange, known)
                return
        request = Request(
            message.payload,
            model,
            exchange.answer,
            content_type,
            wildcards[route.id_wildcard - 1] if route.id_wildcard else None,
            message.topic,
            None,
            route.lane.priority,
            name,
        )
        if message.held_since:
            request.ledger.received = message.held_since
        exchange.request = request
        refusal = self._gate.refusal(message)
        if refusal is None and route.receiver is not None:
            refusal = exchange.open(request, message, route.receiver)
        _wishes(request, message, route)
        if refusal is not None:
            self._refuse(request, *refusal)
        else:
            self._admission.put(request, route.lane)

    @property
    def session(self) -> Session:
        """The attached session."""
        assert self._session is not None
        return self._session

    def _route(self, topic: str) -> tuple[Route, tuple[str, ...]] | None:
        """The route of a topic and what its wildcards stand for; remembered, because topics come again."""
        try:
            return self._found[topic]
        except KeyError:
            pass
        found = None
        for route in self._routes:
            wildcards = route.filter.match(topic)
            if wildcards is not None:
                found = route, wildcards
                break
        if len(topic) <= _LONGEST_REMEMBERED:
            if len(self._found) >= _TOPICS_REMEMBERED:
                self._found.clear()
            self._found[topic] = found
        return found

    def _publish(self, exchange: _Exchange, reply: _Reply) -> None:
        request = exchange.request
        # Who was refused may try again; what came at QoS 0 is never repeated.
        first = exchange.messages[0]
        if request is not None and request.refusal is None and (first.qos or first.correlation is not None):
            self._cache.put(exchange.key, reply)
        message = Outgoing(
            exchange.topic, reply.payload, exchange.route.qos, False, first.correlation, None, reply.content_type
        )
        if exchange.route.outbox and self._outbox is not None:  # a stored reply may be late, but it is not lost
            self._outbox.put(
                message,
                lambda safe: exchange.confirmed(None) if safe else self.session.publish(message, exchange.confirmed),
            )
            return
        expires = None
        if request is not None and request.deadline and request.refusal is None:
            expires = request.deadline / 1e9
        self.session.publish(message, exchange.confirmed, expires)

    def _confirmed(self, exchange: _Exchange, reason: str | None) -> None:
        request = exchange.request
        if reason is not None and request is not None and request.refusal is None:
            # Perhaps it takes a short error in place of the reply, on the route's own topic if not where the sender
            # wants it, so that the sender need not wait in vain.
            self._cache.drop(exchange.key)
            found = self._route(exchange.messages[0].topic)
            if found is not None and reason != "expired":
                exchange.topic = fill(found[0].publish, found[1])
            request.reopen()
            if reason == "expired":
                self._refuse(request, "expired", "the deadline passed in stage 'publish'")
            else:
                self._refuse(request, "undeliverable", f"the broker does not take the reply: {reason}")
            return
        self._pending.pop(exchange.key, None)
        if reason is not None:
            # The broker will not take it however often it is tried; keeping the input would only block the rest.
            log.error("the broker refuses the reply on '%s': %s", exchange.topic, reason)
            self._stats.count("publish_failed")
        elif request is not None and request.refusal is None:
            request.ledger.stamp("publish")
            self._stats.answered(request.model, request.ledger)
        exchange.request = None  # they hold each other, and would wait for the garbage collector
        for message in exchange.messages:
            self.session.done(message)

    def quiet(self, timeout: float) -> bool:
        """Waits until every reply is confirmed; whether that took no longer than ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while self._pending and time.monotonic() < until:
            time.sleep(0.005)
        return not self._pending


class _Exchange:
    """A message, the same message come again, and the reply to both."""

    __slots__ = ("_delivery", "_opened", "key", "messages", "request", "route", "topic")

    def __init__(self, delivery: Delivery, key: Hashable, topic: str, route: Route, message: Incoming) -> None:
        self._delivery, self.key, self.topic, self.route = delivery, key, topic, route
        self.messages = [message]
        self.request: Request | None = None  # None: answered from the cache
        self._opened: Opened | None = None  # what was encrypted

    def open(self, request: Request, message: Incoming, receiver: Receiver) -> tuple[str, str] | None:
        """Puts what was encrypted into the request; code and message of the refusal where it can't be taken."""
        from agent.wire.sealed import SealError

        try:
            opened = receiver.open(message.payload, message.topic, message.correlation)
        except SealError as e:
            return e.code, str(e)
        self._opened = opened
        request.sealed = message.payload, message.correlation
        request.payload, request.content_type = opened.payload, opened.content_type or request.content_type
        return None if opened.known else ("unknown_sender", "the sender's key is not in encryption.senders")

    def answer(self, payload: bytes, content_type: str, request: Request) -> None:
        if self._opened is not None:
            payload = self._opened.reply(payload, content_type, self.topic, self.messages[0].correlation)
            content_type = SEALED
        self._delivery._publish(self, _Reply(payload, content_type))

    def confirmed(self, reason: str | None) -> None:
        self._delivery._confirmed(self, reason)


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


def _key(message: Incoming, topic: str, name: bytes) -> Hashable:
    """What makes two messages the same: the sender's correlation, or else the broker's id on this session; and the
    payload, because a sender may give every message the same correlation, for example its own name.
    """
    if message.correlation is None and message.qos == 0:
        return id(message)
    return (message.topic, topic, message.mid if message.correlation is None else message.correlation, name)


def _wishes(request: Request, message: Incoming, route: Route) -> None:
    """Takes over what the sender asks for: how long it waits, how soon it wants to be served, when it sent. What the
    message's user properties say holds before what its JSON says; the soonest deadline holds.
    """
    user = message.user
    timeout_us = priority = None
    if user:
        request.ledger.source_unix_us = _whole(user.get("source_timestamp_us"))
        timeout_us, priority = _whole(user.get("timeout_us")), _whole(user.get("priority"))
    if request.payload[:1] == b"{":
        asked = oip.wishes(request.payload)
        timeout_us = asked.timeout if timeout_us is None else timeout_us
        priority = asked.priority if priority is None else priority
    limits_us = [us for us in (timeout_us, (route.deadline_ms or 0) * 1000, (message.expiry_s or 0) * 1_000_000) if us]
    request.wish(min(limits_us, default=None), priority)


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None and len(text) < 20 else None
    except ValueError:
        return None
