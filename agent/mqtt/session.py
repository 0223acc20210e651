"""One MQTT session, kept alive over lost connections and restarts of the process.

One thread connects, receives, and tries again with back-off and jitter; a thread that publishes sends by itself where
the socket takes it at once. What a general client library does not do, and is done here: TCP_NODELAY on every socket;
manual acknowledgement, in order of arrival, and only on the connection that delivered; confirmation of a publication
by its reason code; packets coalesced under load; a bound on what a packet may hold; MQTT 3.1.1 where the broker refuses
5. With a digit recognized in each, more messages get through than through a bare echo of paho
(``python -m bench.roundtrip``).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.errors import ConfigError
from agent.mqtt import packets
from agent.mqtt.link import Link
from agent.mqtt.messages import Confirmed, Incoming, Outgoing, Settings
from agent.mqtt.packets import Connack, Login, ProtocolError, Reader
from agent.mqtt.tls import explain

log = logging.getLogger(__name__)
NO_CONNECTION, NO_READER = "no connection", "no matching subscribers"
_STOP_TIMEOUT_S = 10.0
_INFLIGHT_311 = 1000  # MQTT 3.1.1 brokers don't say how many they take
_BLAMES = 3  # lost connections that tell a bad publication from a bad line
_NOT_UNDERSTOOD = ("hung up", "no answer", packets.reason_name(packets.UNSUPPORTED_VERSION))


@dataclass(slots=True)
class _Sent:
    message: Outgoing
    confirmed: Confirmed
    expires: float | None  # time.monotonic
    once: bool
    blamed: int = 0  # connections lost while it alone was under way


class Session:
    """Keeps one MQTT session alive until ``stop``.

    on_message: called on the network thread with each ``Incoming``; it must be quick. on_connected: called there after
    each subscription was confirmed. clean: the broker shall keep nothing. most: bytes of a packet that are kept.
    most_held: bytes of payloads that wait here because the broker delivers more than ``receive_maximum``; past them
    ``on_message`` gets what comes all the same.
    will: or what gives it, asked before each CONNECT.
    """

    def __init__(
        self,
        settings: Settings,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]],
        on_message: Callable[[Incoming], None],
        on_connected: Callable[[], None] = lambda: None,
        will: Outgoing | Callable[[], Outgoing] | None = None,
        clean: bool = False,
        most: int = 256 << 20,
        most_held: int = 64 << 20,
    ) -> None:
        self._settings, self._client_id, self._will, self._clean = settings, client_id, will, clean
        self._subscriptions, self._most, self._most_held = list(subscriptions), most, most_held
        self._on_message, self._on_connected = on_message, on_connected
        self._v5 = settings.protocol != "3.1.1"
        self.epoch = 0
        self.refusal: str | None = None  # why there is no connection
        self._link: Link | None = None
        self._largest = 0
        # Publications: waiting for a connection or for the broker's quota; and sent, but not confirmed.
        self._lock = threading.Lock()
        self._queued: deque[_Sent] = deque()
        self._inflight: OrderedDict[int, _Sent] = OrderedDict()
        self._quota = self._full_quota = 0
        self._losses = 0  # connections lost in a row on which the broker confirmed nothing of what was under way
        self._careful = 0  # publications to be sent one by one, because one of them seems to end each connection
        self._mid = 0
        self._unacked: deque[Incoming] = deque()
        self._held: deque[Incoming] = deque()  # the youngest of them, which on_message has not seen yet
        self._held_bytes = 0
        self._ready = threading.Event()  # subscribed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    # For the user

    def start(self) -> None:
        """Begins to connect, in the background, and goes on until ``stop``."""
        self._thread.start()

    def wait_ready(self, timeout: float) -> bool:
        """Whether it is connected and subscribed, now or within ``timeout`` seconds."""
        return self._ready.wait(timeout)

    @property
    def connected(self) -> bool:
        """Connected and subscribed."""
        return self._ready.is_set()

    @property
    def version(self) -> str:
        """``5`` or ``3.1.1``."""
        return "5" if self._v5 else "3.1.1"

    def publish(self, message: Outgoing, confirmed: Confirmed = lambda reason: None,
                expires: float | None = None, once: bool = False) -> None:  # fmt: skip
        """Publishes, or keeps the message (QoS 1) until there is a connection.

        confirmed(None) once the broker has taken it; confirmed(reason) if it refused it, or if it could not be sent
        before ``expires`` (``time.monotonic``): reason is then ``expired``. From another thread, perhaps before this
        returns. With ``once``, the message is the caller's to repeat: reason is ``NO_CONNECTION`` where there is none
        or it is lost, and ``NO_READER`` where the broker says that nobody subscribes (MQTT 5).
        """
        why: str | None = None
        link = self._link
        try:
            if message.qos == 0:
                if link is None:
                    why = NO_CONNECTION
                else:
                    link.send(packets.publish(message, 0, self._v5))
            else:
                with self._lock:
                    if self._quota > 0 and not self._queued:
                        self._send(_Sent(message, confirmed, expires, once))
                    elif once and self._link is None:
                        why = NO_CONNECTION
                    else:
                        packets.publish(message, 1, self._v5)  # raises where it can't be sent at all
                        self._queued.append(_Sent(message, confirmed, expires, once))
        except ValueError as e:
            why = str(e)
        if link is not None:
            link.flush()
        if message.qos == 0 or why is not None:
            confirmed(why)

    def done(self, message: Incoming) -> None:
        """Acknowledges ``message``, as soon as all that came before it are done."""
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

    def unacknowledged(self) -> int:
        """How many messages are not done yet."""
        return len(self._unacked)

    def stop(self) -> None:
        """Disconnects in good order; the broker keeps the session."""
        self._stopping.set()
        link = self._link
        if link is not None:
            link.send(packets.disconnect(self._v5, 0 if self._clean else self._settings.session_expiry_s))
            link.finish()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT_S)

    # The network thread

    def _run(self) -> None:
        delay = self._settings.reconnect_min_s
        while not self._stopping.is_set():
            taken_over = False
            try:
                link, reader, waiting = self._connect()
            except (OSError, ValueError, ProtocolError, ConfigError) as e:
                self.refusal = (explain(e) if self._settings.tls and isinstance(e, OSError) else str(e)) or type(
                    e
                ).__name__
                self._change_protocol()
            else:
                taken_over = self._serve(link, reader, waiting)
                if self._ready.is_set():
                    delay = self._settings.reconnect_min_s
                self._disconnected(link)
            if self._stopping.is_set():
                return
            if taken_over:  # two clients of one name would throw each other out for ever
                delay = self._settings.reconnect_max_s
                log.error("another client has the id '%s': give each device its own broker.client_id", self._client_id)
            log.warning("no connection to %s:%d (%s), trying again in %.1f s", self._settings.host,
                        self._settings.port, self.refusal or "lost", delay)  # fmt: skip
            # Jitter, so that a fleet does not come back as one.
            self._stopping.wait(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self._settings.reconnect_max_s)

    def _connect(self) -> tuple[Link, Reader, list[tuple[int, bytes, int]]]:
        """A link that the broker has accepted, and what came on it already. Raises OSError with the reason."""
        settings = self._settings
        password = settings.password
        if settings.password_file:
            with open(settings.password_file, encoding="utf-8") as file:
                password = file.read().rstrip("\n")
        link = Link(settings)
        try:
            login = Login(self._client_id, settings.keepalive_s, self._clean, 0 if self._clean else
                          settings.session_expiry_s, settings.receive_maximum, settings.username, password,
                          self._will() if callable(self._will) else self._will)  # fmt: skip
            link.send(packets.connect(login, self._v5))
            reader = Reader(self._most)
            waiting: list[tuple[int, bytes, int]] = []
            until = time.monotonic() + settings.connect_timeout_s
            while not waiting:
                data = link.receive(max(0.0, until - time.monotonic()))
                if not data:
                    raise OSError("hung up" if data is not None else "no answer")
                waiting = reader.feed(data)
            first, body, _ = waiting.pop(0)
            if first >> 4 != packets.CONNACK:
                raise ProtocolError("the broker's first packet is no CONNACK")
            answer = packets.parse_connack(body, self._v5)
            if answer.reason:
                raise OSError(answer.text or packets.reason_name(answer.reason))
        except BaseException:
            link.close()
            raise
        self._accepted(link, answer)
        return link, reader, waiting

    def _accepted(self, link: Link, answer: Connack) -> None:
        """Subscribes, and sends again what was not confirmed, in order."""
        self.refusal = None
        self._largest = answer.largest
        link.keepalive_s = answer.keepalive_s or self._settings.keepalive_s
        with self._lock:  # ids of the old connection mean nothing on this one; what was unacknowledged comes again
            self.epoch += 1
            self._unacked.clear()
            self._held.clear()
            self._held_bytes = 0
            if self._subscriptions:
                self._mid = self._mid % 65535 + 1
                while self._mid in self._inflight:
                    self._mid = self._mid % 65535 + 1
                link.send(packets.subscribe(self._mid, self._subscriptions, self._v5))
            quota = answer.receive_maximum if self._v5 else _INFLIGHT_311
            self._full_quota = quota
            if self._careful:
                quota = 1
            again = list(self._inflight.items())
            self._inflight = OrderedDict(again[:quota])
            self._queued.extendleft(sent for _, sent in reversed(again[quota:]))
            for mid, sent in self._inflight.items():
                link.send(packets.publish(sent.message, mid, self._v5, answer.session_present))
            self._quota = quota - len(self._inflight)
            self._link = link
            failed = self._drain()
        for sent, why in failed:
            sent.confirmed(why)
        if not self._subscriptions:
            self._subscribed()

    def _serve(self, link: Link, reader: Reader, waiting: list[tuple[int, bytes, int]]) -> bool:
        """Until the connection is lost; whether another client has taken the session over."""
        try:
            while True:
                for first, body, missing in waiting:
                    kind = first >> 4
                    if kind == packets.PUBLISH:
                        self._published(first, body, missing)
                    elif kind == packets.PUBACK:
                        self._confirmed(*packets.parse_puback(body))
                    elif kind == packets.SUBACK:
                        self._suback(body)
                    elif kind == packets.DISCONNECT:
                        reason = body[0] if body else 0
                        if reason in packets.OUR_FAULT:
                            self._losses = _BLAMES
                        self.refusal = f"the broker says: {packets.reason_name(reason)}"
                        return reason == packets.TAKEN_OVER
                if self._held:
                    self._hand_on()
                link.release()
                data = link.wait()
                if data is None:
                    waiting = []
                elif data:
                    waiting = reader.feed(data)
                else:
                    return False
        except (OSError, ProtocolError) as e:
            self.refusal = explain(e) if self._settings.tls and isinstance(e, OSError) else str(e)
            if isinstance(e, ProtocolError):
                log.error("what comes from the broker is not MQTT: %s", e)
            return False

    def _disconnected(self, link: Link) -> None:
        with self._lock:
            self._link = None
            self._quota = 0
            lost = [s for s in (*self._inflight.values(), *self._queued) if s.once]
            if lost:
                self._inflight = OrderedDict((mid, s) for mid, s in self._inflight.items() if not s.once)
                self._queued = deque(s for s in self._queued if not s.once)
            given_up = self._blame()
        self._ready.clear()
        link.close()
        for sent in lost:
            sent.confirmed(NO_CONNECTION)
        if given_up is not None:
            log.error("the broker ends each connection on which '%s' is published; given up", given_up.message.topic)
            given_up.confirmed("it ends the connection over it")

    def _change_protocol(self) -> None:
        """Under ``auto``, a broker that hangs up on MQTT 5 before it ever accepted us gets 3.1.1 next, and in turn."""
        if self._settings.protocol == "auto" and not self.epoch and self.refusal in _NOT_UNDERSTOOD:
            self._v5 = not self._v5
            log.info("trying MQTT %s", self.version)

    def _published(self, first: int, body: bytes, missing: int) -> None:
        message = packets.parse_publish(first, body, missing, self._v5, self.epoch)
        with self._lock:
            self._unacked.append(message)
            # mosquitto 2.0 exceeds receive_maximum on a session that goes on: by as much again with each PUBACK.
            if (
                message.qos
                and (self._held or len(self._unacked) > self._settings.receive_maximum)
                and (self._held_bytes + len(message.payload) <= self._most_held)
            ):
                message.held_since = time.monotonic_ns()
                self._held.append(message)
                self._held_bytes += len(message.payload)
                return
        self._hand(message)

    def _hand_on(self) -> None:
        """What was held, as far as ``receive_maximum`` goes."""
        while True:
            with self._lock:
                under_way = len(self._unacked) - len(self._held)
                if not self._held or under_way >= self._settings.receive_maximum:
                    return
                message = self._held.popleft()
                self._held_bytes -= len(message.payload)
            self._hand(message)

    def _hand(self, message: Incoming) -> None:
        try:
            self._on_message(message)
        except Exception:  # whatever it is, it must not cost the connection
            log.exception("a message on '%s' could not be taken", message.topic)
            self.done(message)

    def _confirmed(self, mid: int, reason: int) -> None:
        with self._lock:
            sent = self._inflight.pop(mid, None)
            if sent is None:
                return
            self._losses = 0
            self._quota += 1
            if self._careful:
                self._careful -= 1
                if not self._careful:
                    self._quota += self._full_quota - 1
            failed = self._drain() if self._queued else ()
        for other, why in failed:
            other.confirmed(why)
        if reason >= packets.FAILURE:
            sent.confirmed(packets.reason_name(reason))
        else:
            sent.confirmed(NO_READER if sent.once and reason == packets.NO_SUBSCRIBERS else None)

    def _suback(self, body: bytes) -> None:
        _, reasons = packets.parse_suback(body, self._v5)
        for (topic, _), reason in zip(self._subscriptions, reasons, strict=False):
            if reason >= packets.FAILURE:
                log.error("the broker refuses the subscription to '%s': %s", topic, packets.reason_name(reason))
        self._subscribed()

    def _subscribed(self) -> None:
        self._ready.set()
        self._on_connected()

    # Under the lock

    def _blame(self) -> _Sent | None:
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
        mid, sent = next(iter(self._inflight.items()))
        sent.blamed += 1
        if sent.blamed < _BLAMES:
            return None
        self._careful -= 1
        return self._inflight.pop(mid)

    def _send(self, sent: _Sent) -> None:
        """Sends a publication of QoS 1; there is quota, and a link. Raises ValueError where it never can."""
        assert self._link is not None
        mid = self._mid % 65535 + 1
        while mid in self._inflight:
            mid = mid % 65535 + 1
        packet = packets.publish(sent.message, mid, self._v5)
        if len(packet) > self._largest:
            raise ValueError(f"{len(packet)} bytes, and the broker takes packets of {self._largest} at most")
        self._mid = mid
        self._inflight[mid] = sent
        self._quota -= 1
        self._link.send(packet)

    def _drain(self) -> list[tuple[_Sent, str]]:
        """Sends what waits, as far as the quota goes; those that can't be sent, with the reason."""
        failed: list[tuple[_Sent, str]] = []
        now = time.monotonic()
        while self._queued and self._quota > 0:
            sent = self._queued.popleft()
            if sent.expires is not None and now > sent.expires:
                failed.append((sent, "expired"))
                continue
            try:
                self._send(sent)
            except ValueError as e:  # this broker takes less than the one before
                failed.append((sent, str(e)))
        return failed
