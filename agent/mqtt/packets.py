"""MQTT 5 and 3.1.1 as bytes: what a client sends and receives, with no socket and no state but a reader's buffer.

    reader = Reader(1 << 20)
    for first, body, missing in reader.feed(received):
        if first >> 4 == PUBLISH:
            message = parse_publish(first, body, missing, v5=True)

Numbers and names are those of the OASIS standards, MQTT Version 5.0 and MQTT Version 3.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from agent.mqtt.messages import Incoming, Outgoing

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 13, 14
PING = bytes([PINGREQ << 4, 0])
FAILURE = 0x80  # reason codes from here on are failures
NO_SUBSCRIBERS, UNSUPPORTED_VERSION, TAKEN_OVER, TOO_LARGE = 0x10, 0x84, 0x8E, 0x95
_U16, _U32 = Struct(">H"), Struct(">I")
_LARGEST = 268_435_455  # of a packet: four bytes of seven bits
_REASONS = {
    0x80: "Unspecified error", 0x81: "Malformed packet", 0x82: "Protocol error", 0x83: "Implementation specific error",
    0x84: "Unsupported protocol version", 0x85: "Client identifier not valid", 0x86: "Bad user name or password",
    0x87: "Not authorized", 0x88: "Server unavailable", 0x89: "Server busy", 0x8A: "Banned",
    0x8B: "Server shutting down", 0x8C: "Bad authentication method", 0x8D: "Keep alive timeout",
    0x8E: "Session taken over", 0x8F: "Topic filter invalid", 0x90: "Topic name invalid",
    0x91: "Packet identifier in use", 0x92: "Packet identifier not found", 0x93: "Receive maximum exceeded",
    0x94: "Topic alias invalid", 0x95: "Packet too large", 0x96: "Message rate too high", 0x97: "Quota exceeded",
    0x98: "Administrative action", 0x99: "Payload format invalid", 0x9A: "Retain not supported",
    0x9B: "QoS not supported", 0x9C: "Use another server", 0x9D: "Server moved",
    0x9E: "Shared subscriptions not supported", 0x9F: "Connection rate exceeded", 0xA0: "Maximum connect time",
    0xA1: "Subscription identifiers not supported", 0xA2: "Wildcard subscriptions not supported",
}  # fmt: skip
OUR_FAULT = frozenset((0x81, 0x82, 0x90, 0x95, 0x99, 0x9A, 0x9B))  # a broker that ends a connection over what we sent
_CONNACK_311 = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}  # its return codes, as reason codes

# Properties, section 2.2.2.2 of MQTT 5. Kinds: 1, 2, 4: a number of so many bytes; v: a variable byte integer;
# s: a string; b: bytes; p: a pair of strings.
_KINDS = {
    1: "1", 2: "4", 3: "s", 8: "s", 9: "b", 11: "v", 17: "4", 18: "s", 19: "2", 21: "s", 22: "b", 23: "1", 24: "4",
    25: "1", 26: "s", 28: "s", 31: "s", 33: "2", 34: "2", 35: "2", 36: "1", 37: "1", 38: "p", 39: "4", 40: "1",
    41: "1", 42: "1",
}  # fmt: skip
_EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _USER = 2, 3, 8, 9, 38
_SESSION_EXPIRY, _SERVER_KEEP_ALIVE, _REASON_STRING, _RECEIVE_MAXIMUM, _MAXIMUM_PACKET = 17, 19, 31, 33, 39


class ProtocolError(Exception):
    """What came is not MQTT."""


class Reader:
    """Cuts a stream into packets. Of a packet whose body has more than ``most`` bytes, only the first ``most`` are
    kept, so that nobody's message can fill the memory.
    """

    def __init__(self, most: int = _LARGEST) -> None:
        self._most = most
        self._rest = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes, int]]:
        """(first byte, body, bytes of the body that are missing) of each packet that is whole now.

        Raises ``ProtocolError``.
        """
        stream: bytes | bytearray = data
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            stream = data[skipped:]
        if self._rest:
            self._rest += stream
            stream = self._rest
        packets: list[tuple[int, bytes, int]] = []
        at, end = 0, len(stream)
        while end - at >= 2:
            length, body = stream[at + 1], at + 2
            if length > 127:
                length, body = _variable(stream, at + 1)
                if body == 0:  # the length itself is not whole yet
                    break
            stop = body + length
            missing = 0
            if length > self._most:
                stop, missing = body + self._most, length - self._most
            if stop > end:
                break
            packets.append((stream[at], bytes(stream[body:stop]), missing))
            at = stop
            if missing:
                skipped = min(missing, end - at)
                at, self._skip = at + skipped, missing - skipped
        if stream is self._rest:
            del self._rest[:at]
        elif at < end:
            self._rest += stream[at:]
        return packets


@dataclass(slots=True)
class Connack:
    """The broker's answer to CONNECT. receive_maximum: how many of our publications it takes unconfirmed."""

    session_present: bool
    reason: int
    receive_maximum: int = 65535
    largest: int = _LARGEST + 5  # bytes of a packet that it takes
    keepalive_s: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Login:
    """What CONNECT says of the client. session_expiry_s and receive_maximum travel over MQTT 5 only."""

    client_id: str
    keepalive_s: int
    clean: bool
    session_expiry_s: int = 0
    receive_maximum: int = 65535
    username: str | None = None
    password: str | None = None
    will: Outgoing | None = None


def reason_name(code: int) -> str:
    """A reason code in words."""
    return _REASONS.get(code, f"reason code {code:#04x}")


def connect(login: Login, v5: bool) -> bytes:
    """CONNECT."""
    flags = 2 if login.clean else 0
    properties = b""
    if v5:
        properties = b"\x11" + _U32.pack(login.session_expiry_s) + b"\x21" + _U16.pack(login.receive_maximum)
        properties = _length(len(properties)) + properties
    parts = [_text(login.client_id)]
    if login.will is not None:
        flags |= 4 | login.will.qos << 3 | (32 if login.will.retain else 0)
        parts += [b"\0" if v5 else b"", _text(login.will.topic), _binary(login.will.payload)]
    if login.username is not None:
        flags |= 128
        parts.append(_text(login.username))
        if login.password is not None:
            flags |= 64
            parts.append(_text(login.password))
    head = b"\x00\x04MQTT" + bytes([5 if v5 else 4, flags]) + _U16.pack(login.keepalive_s) + properties
    return _packet(CONNECT << 4, head + b"".join(parts))


def subscribe(mid: int, topics: Sequence[tuple[str, int]], v5: bool) -> bytes:
    """SUBSCRIBE to (filter, qos) pairs."""
    parts = [_U16.pack(mid), b"\0" if v5 else b""]
    for topic, qos in topics:
        parts += [_text(topic), bytes([qos])]
    return _packet(SUBSCRIBE << 4 | 2, b"".join(parts))


def publish(message: Outgoing, mid: int, v5: bool, duplicate: bool = False) -> bytes:
    """PUBLISH. Raises ValueError where a field is too long for the protocol."""
    topic = message.topic.encode()
    if not 0 < len(topic) < 65536:
        raise ValueError(f"a topic of {len(topic)} bytes can't be published to")
    head = (PUBLISH << 4) | message.qos << 1 | message.retain | duplicate << 3
    parts = [b"", _U16.pack(len(topic)), topic]
    if message.qos:
        parts.append(_U16.pack(mid))
    if v5:
        parts.append(_publish_properties(message))
    parts.append(message.payload)
    size = sum(map(len, parts))
    if size > _LARGEST:
        raise ValueError(f"a message of {size} bytes is too long for MQTT")
    parts[0] = bytes((head, size)) if size < 128 else bytes((head,)) + _length(size)
    return b"".join(parts)


def puback(mid: int) -> bytes:
    """PUBACK, of success."""
    return b"\x40\x02" + _U16.pack(mid)


def disconnect(v5: bool, session_expiry_s: int) -> bytes:
    """DISCONNECT in good order."""
    if not v5:
        return b"\xe0\x00"
    return _packet(DISCONNECT << 4, b"\x00\x05\x11" + _U32.pack(session_expiry_s))


def parse_connack(body: bytes, v5: bool) -> Connack:
    """Raises ``ProtocolError``."""
    if len(body) < 2:
        raise ProtocolError("CONNACK is too short")
    answer = Connack(bool(body[0] & 1), body[1] if v5 else _CONNACK_311.get(body[1], body[1]))
    if v5 and len(body) > 2:
        found = properties(body, 2)[0]
        answer.receive_maximum = max(1, found.get(_RECEIVE_MAXIMUM, answer.receive_maximum))
        answer.largest = found.get(_MAXIMUM_PACKET, answer.largest)
        answer.keepalive_s = found.get(_SERVER_KEEP_ALIVE)
        answer.text = found.get(_REASON_STRING, "")
    return answer


def parse_suback(body: bytes, v5: bool) -> tuple[int, bytes]:
    """The packet's id, and a reason code for each topic. Raises ``ProtocolError``."""
    if len(body) < 3:
        raise ProtocolError("SUBACK is too short")
    at = properties(body, 2)[1] if v5 else 2
    return _U16.unpack_from(body)[0], body[at:]


def parse_puback(body: bytes) -> tuple[int, int]:
    """The packet's id and the reason code. Raises ``ProtocolError``."""
    if len(body) < 2:
        raise ProtocolError("PUBACK is too short")
    return body[0] << 8 | body[1], body[2] if len(body) > 2 else 0


def parse_publish(first: int, body: bytes, missing: int, v5: bool, epoch: int = 0) -> Incoming:
    """Raises ``ProtocolError``. Text that is not UTF-8 is taken with its bad bytes replaced: a broker that lets it pass
    would deliver it again for ever.
    """
    qos = first >> 1 & 3
    if len(body) < 2 or qos > 1:
        raise ProtocolError("PUBLISH is too short, or of a QoS that was not subscribed to")
    at = 2 + (body[0] << 8 | body[1])
    topic = body[2:at].decode(errors="replace")
    mid = 0
    if qos:
        mid = int.from_bytes(body[at : at + 2])
        at += 2
    message = Incoming(topic, b"", qos, mid, bool(first & 8), epoch, missing=missing, retained=bool(first & 1))
    if v5:
        if body[at : at + 1] == b"\0":
            at += 1
        else:
            found, at = properties(body, at)
            message.response_topic = found.get(_RESPONSE_TOPIC)
            message.correlation = found.get(_CORRELATION)
            message.content_type = found.get(_CONTENT_TYPE)
            message.expiry_s = found.get(_EXPIRY)
            if _USER in found:
                message.user = dict(found[_USER])
    if at > len(body):
        raise ProtocolError("PUBLISH is cut short")
    message.payload = body[at:]
    return message


def properties(body: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Properties by their numbers, and where they end; user properties as a list of pairs. Raises ``ProtocolError``."""
    length, at = _variable(body, at)
    end = at + length
    if at == 0 or end > len(body):
        raise ProtocolError("properties are cut short")
    found: dict[int, Any] = {}
    while at < end:
        number = body[at]
        kind = _KINDS.get(number)
        at += 1
        if kind in {"s", "b"}:
            stop = at + 2 + int.from_bytes(body[at : at + 2])
            raw = body[at + 2 : stop]
            found[number] = raw.decode(errors="replace") if kind == "s" else raw
            at = stop
        elif kind == "p":
            middle = at + 2 + int.from_bytes(body[at : at + 2])
            stop = middle + 2 + int.from_bytes(body[middle : middle + 2])
            pair = (body[at + 2 : middle].decode(errors="replace"), body[middle + 2 : stop].decode(errors="replace"))
            found.setdefault(number, []).append(pair)
            at = stop
        elif kind == "v":
            found[number], at = _variable(body, at)
            if at == 0:
                raise ProtocolError("a property is cut short")
        elif kind is not None:
            stop = at + int(kind)
            found[number] = int.from_bytes(body[at:stop])
            at = stop
        else:
            raise ProtocolError(f"there is no property {number}")
    if at != end:
        raise ProtocolError("properties are cut short")
    return found, at


def _publish_properties(message: Outgoing) -> bytes:
    parts: list[bytes] = []
    if message.expiry_s is not None:
        parts += [b"\x02", _U32.pack(message.expiry_s)]
    if message.content_type is not None:
        parts += [b"\x03", _text(message.content_type)]
    if message.response_topic is not None:
        parts += [b"\x08", _text(message.response_topic)]
    if message.correlation is not None:
        parts += [b"\x09", _binary(message.correlation)]
    for name, value in message.user:
        parts += [b"\x26", _text(name), _text(value)]
    joined = b"".join(parts)
    return _length(len(joined)) + joined


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + _length(len(body)) + body


def _binary(data: bytes) -> bytes:
    if len(data) > 65535:
        raise ValueError(f"a field of {len(data)} bytes is too long for MQTT; 65535 is the most")
    return _U16.pack(len(data)) + data


def _text(text: str) -> bytes:
    return _binary(text.encode())


def _length(value: int) -> bytes:
    """A variable byte integer."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _variable(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer and where it ends; (0, 0) where it is not whole. Raises ``ProtocolError``."""
    value = shift = 0
    for i in range(at, min(at + 4, len(data))):
        value |= (data[i] & 127) << shift
        if data[i] < 128:
            return value, i + 1
        shift += 7
    if len(data) >= at + 4:
        raise ProtocolError("a length of more than four bytes")
    return 0, 0
