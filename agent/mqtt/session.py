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
from collections.abc import Callable, Sequence

from agent.errors import ConfigError
from agent.mqtt import packets
from agent.mqtt.inflow import Inflow
from agent.mqtt.link import Link
from agent.mqtt.messages import Confirmed, Incoming, Outgoing, Settings
from agent.mqtt.outflow import NO_CONNECTION, Outflow, Publication
from agent.mqtt.packets import Connack, Login, ProtocolError, Reader
from agent.mqtt.tls import explain

log = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 10.0
_INFLIGHT_311 = 1000  # MQTT 3.1.1 brokers don't say how many they take
# What a broker does that does not know MQTT 5, and how often until that is believed: one that starts, or whose TLS a
# port scan has upset, hangs up once on anybody.
_NOT_UNDERSTOOD = {"hung up": 2, "no answer": 1, packets.reason_name(packets.UNSUPPORTED_VERSION): 1}


class Session:
    """Keeps one MQTT session alive until ``stop``.

    on_message: called on the network thread with each ``Incoming``; it must be quick. on_connected: called there after
    each subscription was confirmed. clean: the broker shall keep nothing. most: bytes of a packet that are kept.
    most_held: bytes of payloads that wait here because the broker delivers more than ``receive_maximum``; past them
    ``on_message`` gets what comes all the same. will: or what gives it, asked before each CONNECT.
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
        self._subscriptions, self._most = list(subscriptions), most
        self._on_connected = on_connected
        self._v5 = settings.protocol != "3.1.1"
        self._not_understood = 0  # in a row, without an answer in MQTT
        self._in = Inflow(on_message, settings.receive_maximum, most_held)
        self._out = Outflow(self._v5)
        self.refusal: str | None = None  # why there is no connection
        self._link: Link | None = None
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

    @property
    def largest(self) -> int:
        """Bytes of a packet that the broker takes, as far as it says; 0 before the first connection."""
        return self._out.largest

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
        if message.qos:
            why = self._out.put(Publication(message, confirmed, expires, once))
        elif link is None:
            why = NO_CONNECTION
        else:
            try:
                link.send(packets.publish(message, 0, self._v5))
            except ValueError as e:
                why = str(e)
        if link is not None:
            link.flush()
        if message.qos == 0 or why is not None:
            confirmed(why)

    def done(self, message: Incoming) -> None:
        """Acknowledges ``message``, as soon as all that came before it are done."""
        self._in.done(message)

    @property
    def epoch(self) -> int:
        """How many connections there have been."""
        return self._in.epoch

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
                self.refusal = self._words(e)
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
        link.keepalive_s = answer.keepalive_s or self._settings.keepalive_s
        self._in.begin(link)
        if self._subscriptions:
            link.send(packets.subscribe(self._out.free_id(), self._subscriptions, self._v5))
        quota = answer.receive_maximum if self._v5 else _INFLIGHT_311
        self._out.begin(link, quota, answer.largest, answer.session_present)
        self._link = link
        if not self._subscriptions:
            self._subscribed()

    def _serve(self, link: Link, reader: Reader, waiting: list[tuple[int, bytes, int]]) -> bool:
        """Until the connection is lost; whether another client has taken the session over."""
        try:
            while True:
                for first, body, missing in waiting:
                    kind = first >> 4
                    if kind == packets.PUBLISH:
                        self._in.take(packets.parse_publish(first, body, missing, self._v5, self._in.epoch))
                    elif kind == packets.PUBACK:
                        self._out.confirmed(*packets.parse_puback(body))
                    elif kind == packets.SUBACK:
                        self._suback(body)
                    elif kind == packets.DISCONNECT:
                        reason = body[0] if body else 0
                        if reason in packets.OUR_FAULT:
                            self._out.suspect()
                        self.refusal = f"the broker says: {packets.reason_name(reason)}"
                        return reason == packets.TAKEN_OVER
                self._in.hand_on()
                link.release()
                data = link.wait()
                if data is None:
                    waiting = []
                elif data:
                    waiting = reader.feed(data)
                else:
                    return False
        except (OSError, ProtocolError) as e:
            self.refusal = self._words(e)
            if isinstance(e, ProtocolError):
                log.error("what comes from the broker is not MQTT: %s", e)
            return False

    def _words(self, error: Exception) -> str:
        told = explain(error) if self._settings.tls and isinstance(error, OSError) else str(error)
        return told or type(error).__name__

    def _disconnected(self, link: Link) -> None:
        self._link = None
        self._in.end()
        self._ready.clear()
        link.close()
        self._out.end()

    def _change_protocol(self) -> None:
        """Under ``auto``, a broker that seems not to know MQTT 5 and never accepted us gets 3.1.1 next, and in turn."""
        if self._settings.protocol != "auto" or self.epoch or self.refusal not in _NOT_UNDERSTOOD:
            return
        self._not_understood += 1
        if self._not_understood >= _NOT_UNDERSTOOD[self.refusal]:
            self._not_understood = 0
            self._v5 = self._out.v5 = not self._v5
            log.info("trying MQTT %s", self.version)

    def _suback(self, body: bytes) -> None:
        _, reasons = packets.parse_suback(body, self._v5)
        for (topic, _), reason in zip(self._subscriptions, reasons, strict=False):
            if reason >= packets.FAILURE:
                log.error("the broker refuses the subscription to '%s': %s", topic, packets.reason_name(reason))
        self._subscribed()

    def _subscribed(self) -> None:
        self._ready.set()
        self._on_connected()
