"""A lean MQTT 5 client for loads: one thread, no callbacks between packets, some 50,000 messages a second.

    wire = Wire(port, "sender", [b"replies/#"], on_message)
    wire.publish(b"cameras/1/frame", payload, properties(correlation=b"7"))
    while wire.pump(0.1): ...

It shares no code with the agent, so that both can't be wrong alike.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

Properties = dict[int, list[bytes]]
PAYLOAD_FORMAT, EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION = 0x01, 0x02, 0x03, 0x08, 0x09
RECEIVE_MAXIMUM, USER = 0x21, 0x26
_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _PINGRESP, _DISCONNECT = 0x20, 0x30, 0x40, 0x90, 0xD0, 0xE0
_SIZES = {0x01: 1, 0x02: 4, 0x11: 4, 0x13: 2, 0x17: 1, 0x18: 4, 0x19: 1, 0x21: 2, 0x22: 2, 0x23: 2, 0x24: 1, 0x25: 1,
          0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}  # fmt: skip
_KEEPALIVE_S = 60
_CHUNK = 1 << 18


class Gone(Exception):
    """The broker ended the connection."""


def varint(n: int) -> bytes:
    """MQTT's variable byte integer."""
    out = bytearray()
    while True:
        n, low = divmod(n, 128)
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


def text(data: bytes) -> bytes:
    """A string or binary data, with its length; at most 65,535 bytes."""
    return len(data).to_bytes(2, "big") + data


def properties(
    response_topic: bytes | None = None,
    correlation: bytes | None = None,
    content_type: bytes | None = None,
    user: Sequence[tuple[bytes, bytes]] = (),
    expiry_s: int | None = None,
    payload_format: int | None = None,
) -> bytes:
    """A PUBLISH's properties as they stand in the packet, their length before them."""
    body = b""
    if payload_format is not None:
        body += bytes((PAYLOAD_FORMAT, payload_format))
    if expiry_s is not None:
        body += bytes((EXPIRY,)) + expiry_s.to_bytes(4, "big")
    if content_type is not None:
        body += bytes((CONTENT_TYPE,)) + text(content_type)
    if response_topic is not None:
        body += bytes((RESPONSE_TOPIC,)) + text(response_topic)
    if correlation is not None:
        body += bytes((CORRELATION,)) + text(correlation)
    for key, value in user:
        body += bytes((USER,)) + text(key) + text(value)
    return varint(len(body)) + body


class Wire:
    """One connection, QoS 1. ``on_message(topic, payload, properties)`` gets what comes, and runs within ``pump``."""

    def __init__(
        self,
        port: int,
        client_id: str,
        subscriptions: Sequence[bytes],
        on_message: Callable[[bytes, bytes, Properties], None],
    ) -> None:
        self._on_message = on_message
        self._in, self._out = bytearray(), bytearray()
        self._queued: list[tuple[bytes, bytes, bytes]] = []  # waiting for room in the broker's window
        self._free = deque(range(1, 65_536))
        self._window, self.unconfirmed = 65_535, 0
        self.refused: list[int] = []  # reason codes of the broker that are no success
        self._spoke = time.monotonic()
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._acks = {_CONNACK: 0, _SUBACK: 0}
        connect = properties_of_connect() + text(client_id.encode())
        self._write(0x10, text(b"MQTT") + b"\x05\x02" + _KEEPALIVE_S.to_bytes(2, "big") + connect)
        self._await(_CONNACK)
        if subscriptions:
            self._write(0x82, b"\0\1\0" + b"".join(text(s) + b"\1" for s in subscriptions))
            self._await(_SUBACK)

    def publish(self, topic: bytes, payload: bytes, props: bytes = b"\0") -> None:
        """Hands a message to ``pump``; ``props`` as ``properties`` gives them."""
        if self.unconfirmed < self._window and not self._queued:
            self._publish(topic, payload, props)
        else:
            self._queued.append((topic, payload, props))

    @property
    def unsent(self) -> int:
        """Bytes and messages that the broker has not room for yet."""
        return len(self._out) + len(self._queued)

    def pump(self, timeout: float) -> bool:
        """Sends and receives what can be, after at most ``timeout`` seconds of nothing; whether anything came."""
        while self._queued and self.unconfirmed < self._window:
            room = min(len(self._queued), self._window - self.unconfirmed)
            for message in self._queued[:room]:
                self._publish(*message)
            del self._queued[:room]
        now = time.monotonic()
        if now - self._spoke > _KEEPALIVE_S / 2:
            self._write(0xC0, b"")
        if self._out:
            self._spoke = now
            try:
                del self._out[: self._socket.send(memoryview(self._out)[:_CHUNK])]
            except BlockingIOError:
                pass
            except OSError as e:
                raise Gone(str(e)) from e
        select.select([self._socket], [self._socket] if self._out else [], [], timeout)
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError as e:
            raise Gone(str(e)) from e
        if not data:
            raise Gone("closed")
        self._in += data
        self._parse()
        return True

    def close(self) -> None:
        """Ends the connection without a word."""
        self._socket.close()

    def _await(self, kind: int) -> None:
        until = time.monotonic() + 10
        while not self._acks[kind]:
            self.pump(0.1)
            if time.monotonic() > until:
                raise Gone("the broker does not answer")

    def _write(self, first: int, body: bytes) -> None:
        self._out += bytes((first,)) + varint(len(body)) + body

    def _publish(self, topic: bytes, payload: bytes, props: bytes) -> None:
        mid = self._free.popleft()
        self.unconfirmed += 1
        size = 4 + len(topic) + len(props) + len(payload)
        self._out += b"".join(
            (b"\x32", varint(size), len(topic).to_bytes(2, "big"), topic, mid.to_bytes(2, "big"), props, payload)
        )

    def _parse(self) -> None:
        data, at, end = self._in, 0, len(self._in)
        while end - at >= 2:
            first, size, shift, start = data[at], 0, 0, at + 1
            while start < end:
                byte = data[start]
                size |= (byte & 0x7F) << shift
                start += 1
                shift += 7
                if byte < 0x80:
                    break
            else:
                break
            if end - start < size:
                break
            self._packet(first, bytes(data[start : start + size]))
            at = start + size
        del data[:at]

    def _packet(self, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == _PUBLISH:
            length = int.from_bytes(body[:2], "big")
            topic, at = body[2 : 2 + length], 2 + length
            if first & 0x06:
                self._out += b"\x40\x02" + body[at : at + 2]
                at += 2
            found, at = parse_properties(body, at)
            self._on_message(topic, body[at:], found)
        elif kind == _PUBACK:
            self.unconfirmed -= 1
            self._free.append(int.from_bytes(body[:2], "big"))
            if len(body) > 2 and body[2] >= 0x80:
                self.refused.append(body[2])
        elif kind == _CONNACK:
            if body[1]:
                raise Gone(f"the broker refuses the connection: {body[1]:#x}")
            found, _ = parse_properties(body, 2)
            if RECEIVE_MAXIMUM in found:
                self._window = int.from_bytes(found[RECEIVE_MAXIMUM][0], "big")
            self._acks[kind] += 1
        elif kind == _SUBACK:
            self._acks[kind] += 1
        elif kind == _DISCONNECT:
            raise Gone(f"the broker disconnects: {body[:1].hex()}")
        else:
            assert kind == _PINGRESP, f"packet {first:#x}"


def properties_of_connect() -> bytes:
    """As many messages under way here as there can be."""
    body = bytes((RECEIVE_MAXIMUM,)) + struct.pack(">H", 65_535)
    return varint(len(body)) + body


def parse_properties(body: bytes, at: int) -> tuple[Properties, int]:
    """Properties by identifier, as bytes (a user property: key, 0, value), and where they end."""
    size, shift = 0, 0
    while True:
        byte = body[at]
        size |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            break
    end, found = at + size, Properties()
    while at < end:
        kind = body[at]
        at += 1
        width = _SIZES.get(kind)
        if width is not None:
            value = body[at : at + width]
            at += width
        elif kind == USER:
            n = int.from_bytes(body[at : at + 2], "big")
            m = int.from_bytes(body[at + 2 + n : at + 4 + n], "big")
            value = body[at + 2 : at + 2 + n] + b"\0" + body[at + 4 + n : at + 4 + n + m]
            at += 4 + n + m
        else:
            n = int.from_bytes(body[at : at + 2], "big")
            value = body[at + 2 : at + 2 + n]
            at += 2 + n
        found.setdefault(kind, []).append(value)
    return found, end
