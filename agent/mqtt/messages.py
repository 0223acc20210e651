"""What passes between a session and its user: messages in, messages out, and how to reach the broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent.mqtt.tls import TlsFiles

SEALED = "application/vnd.int8d.sealed"  # the content type of what is encrypted; its own is inside
Confirmed = Callable[[str | None], None]  # None once the broker has taken a publication, else why it has not


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
    def tls(self) -> TlsFiles | None: ...
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


@dataclass(slots=True, eq=False)
class Incoming:
    """A message from the broker. It stays unacknowledged until ``Session.done``.

    missing: bytes of the payload that were not kept, because the packet is larger than the session takes.
    held_since: when it came (``time.monotonic_ns``), where it had to wait before it was handed on. retained: it is not
    new, but what the broker keeps for who subscribes.
    """

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
    missing: int = 0
    finished: bool = False
    held_since: int = 0
    retained: bool = False


@dataclass(frozen=True, slots=True)
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
    expiry_s: int | None = None
