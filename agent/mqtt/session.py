"""The connection to the broker: the only file of the agent that imports paho.

What paho does not do by itself, and is done here: TCP_NODELAY on every socket; a session that outlives the process;
manual
acknowledgement, in order of arrival, and only on the connection that delivered; confirmation of a publication by its
reason code; back-off with jitter; MQTT 3.1.1 where the broker refuses 5. Callbacks of paho only append and never
raise: an exception there would end the network thread.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.mqtt import tls

log = logging.getLogger(__name__)
_V5, _V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
_STOP_TIMEOUT_S = 10.0
_NOT_UNDERSTOOD = ("hung up", "no answer", "unsupported")


class Settings(Protocol):
    """What is read of ``agent.config.Broker``."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def protocol(self) -> str: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def password_file(self) -> str | None: ...
    @property
    def tls(self) -> tls.TlsFiles | None: ...
    @property
    def keepalive_s(self) -> int: ...
    @property
    def session_expiry_s(self) -> int: ...
    @property
    def receive_maximum(self) -> int: ...
    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def reconnect_min_s(self) -> float: ...
    @property
    def reconnect_max_s(self) -> float: ...


@dataclass
class Incoming:
    """A message from the broker. It stays unacknowledged until ``Session.done``."""

    topic: str
    payload: bytes
    qos: int
    mid: int
    duplicate: bool
    epoch: int  # the connection that delivered it
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None
    user: dict[str, str] = field(default_factory=dict)
    finished: bool = False


@dataclass(frozen=True)
class Outgoing:
    """A message to publish. The properties travel over MQTT 5 only."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    correlation: bytes | None = None
    response_topic: str | None = None
    content_type: str | None = None
    user: tuple[tuple[str, str], ...] = ()


class Session:
    """Keeps one MQTT session alive until ``stop``.

    on_message: called on the network thread with each ``Incoming``; it must be quick and must not raise.
    on_connected: called on the network thread after each subscription was confirmed.
    """

    def __init__(
        self,
        settings: Settings,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]],
        on_message: Callable[[Incoming], None],
        on_connected: Callable[[], None] = lambda: None,
        will: Outgoing | None = None,
        clean: bool = False,
    ) -> None:
        self._settings, self._client_id, self._will, self._clean = settings, client_id, will, clean
        self._subscriptions = list(subscriptions)
        self._on_message, self._on_connected = on_message, on_connected
        self.protocol = _V311 if settings.protocol == "3.1.1" else _V5
        self.epoch = 0
        self.connects = 0
        self.refusal: str | None = None  # why the broker refuses us, if it does
        self._unacked: deque[Incoming] = deque()
        self._ack_lock = threading.Lock()
        self._waiting: dict[int, Callable[[str | None], None]] = {}
        self._early: dict[int, str | None] = {}
        self._ready = threading.Event()  # subscribed
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._answered = False  # this connection got its CONNACK
        self._client = self._make_client()
        self._supervisor = threading.Thread(target=self._supervise, name="mqtt-supervisor", daemon=True)

    # For the daemon

    def start(self) -> None:
        """Begins to connect, in the background, and goes on until ``stop``."""
        self._supervisor.start()

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
        return "5" if self.protocol == _V5 else "3.1.1"

    def publish(self, message: Outgoing, confirmed: Callable[[str | None], None] = lambda reason: None) -> None:
        """Publishes, or keeps the message until there is a connection.

        confirmed(None) once the broker has taken it; confirmed(reason) if it refused it. From another thread, perhaps
        before this returns.
        """
        try:
            info = self._client.publish(
                message.topic, message.payload, message.qos, message.retain, self._publish_properties(message)
            )
        except ValueError as e:  # too long, or no topic
            confirmed(str(e))
            return
        if message.qos == 0 and info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:  # not kept for the next connection
            confirmed(paho.error_string(info.rc))
            return
        # The confirmation may overtake us: each side leaves its half, then looks for the other's.
        self._waiting[info.mid] = confirmed
        if info.mid in self._early:
            self._confirm(info.mid, self._early.get(info.mid))

    def done(self, message: Incoming) -> None:
        """Acknowledges ``message``, as soon as all that came before it are done."""
        with self._ack_lock:
            message.finished = True
            while self._unacked and self._unacked[0].finished:
                first = self._unacked.popleft()
                if first.epoch == self.epoch and first.qos > 0:
                    self._client.ack(first.mid, first.qos)

    def unacknowledged(self) -> int:
        """How many messages are not done yet."""
        return len(self._unacked)

    def unconfirmed(self) -> int:
        """How many publications the broker has not confirmed."""
        return len(self._waiting)

    def stop(self) -> None:
        """Disconnects in good order; the broker keeps the session."""
        self._stopping.set()
        self._lost.set()
        if self._supervisor.is_alive():
            self._supervisor.join(_STOP_TIMEOUT_S)
        properties = None
        if self.protocol == _V5:
            properties = Properties(PacketTypes.DISCONNECT)
            properties.SessionExpiryInterval = 0 if self._clean else self._settings.session_expiry_s
        self._client.disconnect(properties=properties)
        self._client.loop_stop()

    # The client

    def _make_client(self) -> paho.Client:
        settings = self._settings
        v5 = self.protocol == _V5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if v5 else self._clean,
            protocol=self.protocol,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.suppress_exceptions = True
        client.connect_timeout = settings.connect_timeout_s
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(65535 if v5 else 1000)
        password = settings.password
        if settings.password_file:
            with open(settings.password_file, encoding="utf-8") as file:
                password = file.read().rstrip("\n")
        if settings.username is not None:
            client.username_pw_set(settings.username, password)
        if settings.tls is not None:
            client.tls_set_context(tls.context(settings.tls))
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_paho_message
        client.on_publish = self._on_publish
        return client

    def _supervise(self) -> None:
        delay = self._settings.reconnect_min_s
        while not self._stopping.is_set():
            self._lost.clear()
            self._answered = False
            try:
                self._connect()
            except (OSError, ValueError) as e:
                self.refusal = tls.explain(e) if isinstance(e, OSError) else str(e)
                self._lost.set()
            else:
                self.refusal = None
                self._client.loop_start()
                if not self._lost.wait(self._settings.connect_timeout_s) and not self._answered:
                    self.refusal = "no answer"
                    self._client.disconnect()  # an old broker may just ignore a protocol that it does not know
                else:
                    self._lost.wait()
                if self._stopping.is_set():
                    return
                self._client.loop_stop()
            if self._ready.is_set():
                delay = self._settings.reconnect_min_s
            self._ready.clear()
            self._change_protocol()
            log.warning("no connection to %s:%d (%s), trying again in %.1f s", self._settings.host,
                        self._settings.port, self.refusal or "lost", delay)  # fmt: skip
            # Jitter, so that a fleet does not come back as one.
            self._stopping.wait(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self._settings.reconnect_max_s)

    def _connect(self) -> None:
        settings = self._settings
        if self.protocol == _V5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if self._clean else settings.session_expiry_s
            properties.ReceiveMaximum = settings.receive_maximum
            self._client.connect(
                settings.host, settings.port, settings.keepalive_s, clean_start=self._clean, properties=properties
            )
        else:
            self._client.connect(settings.host, settings.port, settings.keepalive_s)

    def _change_protocol(self) -> None:
        """Under ``auto``, a broker that hangs up on MQTT 5 before it ever accepted us gets 3.1.1 next, and in turn."""
        if self._settings.protocol != "auto" or self.connects or self.refusal not in _NOT_UNDERSTOOD:
            return
        self.protocol = _V311 if self.protocol == _V5 else _V5
        log.info("trying MQTT %s", self.version)
        self._client = self._make_client()

    def _publish_properties(self, message: Outgoing) -> Properties | None:
        if self.protocol != _V5:
            return None
        properties = Properties(PacketTypes.PUBLISH)
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.response_topic is not None:
            properties.ResponseTopic = message.response_topic
        if message.content_type is not None:
            properties.ContentType = message.content_type
        if message.user:
            properties.UserProperty = list(message.user)
        return properties

    # Callbacks, on the network thread

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # Without it, a small message waits for the acknowledgement of the one before: 44 ms instead of 0.35.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._answered = True
        if reason.is_failure:
            name = str(reason)
            self.refusal = "unsupported" if "protocol version" in name.lower() else name
            self._lost.set()
            return
        with self._ack_lock:  # ids of the old connection mean nothing on this one; what was unacknowledged comes again
            self.epoch += 1
            self._unacked.clear()
        self.connects += 1
        self.refusal = None
        if self._subscriptions:
            client.subscribe(self._subscriptions)
        else:
            self._subscribed()

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        for (topic, _), reason in zip(self._subscriptions, reasons, strict=False):
            if reason.is_failure:
                log.error("the broker refuses the subscription to '%s': %s", topic, reason)
        self._subscribed()

    def _subscribed(self) -> None:
        self._ready.set()
        self._on_connected()

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if client is not self._client:
            return
        if not self._answered:
            self.refusal = self.refusal or "hung up"
        self._lost.set()

    def _on_paho_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        incoming = Incoming(message.topic, bytes(message.payload), message.qos, message.mid, message.dup, self.epoch)
        properties = message.properties
        if properties is not None:
            incoming.response_topic = getattr(properties, "ResponseTopic", None)
            incoming.correlation = getattr(properties, "CorrelationData", None)
            incoming.content_type = getattr(properties, "ContentType", None)
            incoming.expiry_s = getattr(properties, "MessageExpiryInterval", None)
            incoming.user = dict(getattr(properties, "UserProperty", ()))
        with self._ack_lock:
            self._unacked.append(incoming)
        self._on_message(incoming)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        why = str(reason) if reason.is_failure else None
        self._early[mid] = why
        self._confirm(mid, why)

    def _confirm(self, mid: int, why: str | None) -> None:
        confirmed = self._waiting.pop(mid, None)
        if confirmed is not None:
            self._early.pop(mid, None)
            confirmed(why)
