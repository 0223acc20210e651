"""The MQTT codec alone: what is written is read again, in whatever pieces it comes, and rubbish is only refused."""

from __future__ import annotations

import random

import pytest

from agent.mqtt import packets
from agent.mqtt.messages import Outgoing
from agent.mqtt.packets import Login, ProtocolError, Reader


def _cut(data: bytes, rng: random.Random) -> list[bytes]:
    pieces = []
    while data:
        n = rng.choice((1, 2, 3, 7, 100, 5000))
        pieces.append(data[:n])
        data = data[n:]
    return pieces


def _message(rng: random.Random, v5: bool) -> Outgoing:
    def text(most: int) -> str:
        return "".join(rng.choice("aé€/𝄞 ") for _ in range(rng.randint(1, most)))

    payload = rng.randbytes(rng.choice((0, 1, 100, 127, 128, 16_383, 16_384, 40_000)))
    message = Outgoing(text(50), payload, rng.randint(0, 1), rng.random() < 0.5)
    if not v5:
        return message
    return Outgoing(
        message.topic, payload, message.qos, message.retain,
        rng.choice((None, b"", rng.randbytes(30), bytes(65_535))), rng.choice((None, text(30))),
        rng.choice((None, "image/png")), tuple((text(5), text(300)) for _ in range(rng.randint(0, 4))),
        rng.choice((None, 0, 2**32 - 1)),
    )  # fmt: skip


@pytest.mark.parametrize("v5", [True, False])
def test_what_is_published_is_read_again_in_any_pieces(v5: bool) -> None:
    rng = random.Random(7)
    sent = [_message(rng, v5) for _ in range(300)]
    stream = b"".join(packets.publish(m, i + 1, v5, duplicate=i % 3 == 0) for i, m in enumerate(sent))
    reader = Reader()
    got = [p for piece in _cut(stream, rng) for p in reader.feed(piece)]
    assert len(got) == len(sent)
    for i, (message, (first, body, missing)) in enumerate(zip(sent, got, strict=True)):
        found = packets.parse_publish(first, body, missing, v5, epoch=3)
        assert (found.topic, found.payload, found.qos) == (message.topic, message.payload, message.qos)
        assert (found.duplicate, found.epoch, bool(first & 1)) == (i % 3 == 0, 3, message.retain)
        assert found.mid == (i + 1 if message.qos else 0)
        assert (found.response_topic, found.correlation) == (message.response_topic, message.correlation)
        assert (found.content_type, found.expiry_s) == (message.content_type, message.expiry_s)
        assert found.user == dict(message.user)


def test_of_a_packet_that_is_too_large_only_the_start_is_kept() -> None:
    rng = random.Random(8)
    small, large = Outgoing("t", b"small"), Outgoing("t", bytes(range(256)) * 1000)
    stream = b"".join(packets.publish(m, 1, True) for m in (small, large, small, large, large, small))
    reader = Reader(most=1000)
    held = 0
    got = []
    for piece in _cut(stream, rng):
        got += reader.feed(piece)
        held = max(held, len(reader._rest))
    assert held < 7000  # what is kept, and a piece
    messages = [packets.parse_publish(first, body, missing, True) for first, body, missing in got]
    assert [m.missing > 0 for m in messages] == [False, True, False, True, True, False]
    for message in messages:
        whole = large if message.missing else small
        assert message.payload == whole.payload[: len(message.payload)]
        assert len(message.payload) + message.missing == len(whole.payload)


def test_rubbish_is_refused_and_nothing_else_happens() -> None:
    rng = random.Random(9)
    seeds = [packets.publish(_message(rng, True), 1, True)[:300] for _ in range(20)]
    seeds += [b"\x20\x09\x00\x00\x06\x22\x00\x0a\x21\x00\x14", b"\x90\x04\x00\x01\x00\x00", b"\x40\x03\x00\x01\x10"]
    parsers = [
        lambda first, body: packets.parse_publish(first, body, 0, True),
        lambda first, body: packets.parse_publish(first, body, 0, False),
        lambda first, body: packets.parse_connack(body, True),
        lambda first, body: packets.parse_connack(body, False),
        lambda first, body: packets.parse_suback(body, True),
        lambda first, body: packets.parse_puback(body),
    ]
    refused = 0
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            for first, body, _ in Reader(1 << 20).feed(bytes(data)):
                rng.choice(parsers)(first, body)
        except ProtocolError:
            refused += 1
    assert refused > 1000


def test_a_connack_tells_the_brokers_limits() -> None:
    answer = packets.parse_connack(b"\x01\x00\x0e\x22\x00\x0a\x21\x00\x14\x27\x00\x00\x10\x00\x13\x00\x05", True)
    assert (answer.session_present, answer.reason, answer.receive_maximum) == (True, 0, 20)
    assert (answer.largest, answer.keepalive_s) == (4096, 5)
    refused = packets.parse_connack(b"\x00\x05", False)
    assert packets.reason_name(refused.reason) == "Not authorized"


def test_what_is_too_long_for_the_protocol_is_not_sent() -> None:
    for message in (Outgoing("t" * 65_536, b""), Outgoing("", b""), Outgoing("t", b"", correlation=bytes(65_536)),
                    Outgoing("\ud800", b"")):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011
            packets.publish(message, 1, True)


def test_a_login_carries_session_will_and_password() -> None:
    will = Outgoing("w", b"gone", 1, True)
    packet = packets.connect(Login("me", 30, False, 86_400, 32, "user", "secret", will), v5=True)
    assert packet[2:8] == b"\x00\x04MQTT"
    assert packet[8:10] == bytes([5, 0x80 | 0x40 | 0x20 | 0x08 | 0x04])
    assert packet.endswith(b"\x00\x01w\x00\x04gone\x00\x04user\x00\x06secret")
