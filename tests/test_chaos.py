"""The short form of ``make chaos``, and that its checker would see what it looks for."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest

from tests.chaos.checker import FAULTS, REPLIES, SENT, check
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios import CannotRun, run

SEED = 5
RIGHT = [{"outputs": [i], "classes": [{"label": str(i)}]} for i in range(3)]


@pytest.mark.parametrize(("name", "faults", "rate"), [
    ("agent-killed", 6, 150),
    ("broker-killed", 2, 100),
    ("connection-reset", 6, 150),
    ("half-open", 1, 100),
    ("stopped", 2, 100),
    ("clock-jumps", 3, 100),
    ("disk-full-agent", 1, 100),
])  # fmt: skip
def test_no_message_is_lost_or_answered_wrongly(tmp_path: Path, name: str, faults: int, rate: int) -> None:
    try:
        verdict, problems = run(name, tmp_path / name, SEED, rate, faults)
    except CannotRun as e:
        pytest.skip(str(e))
    assert not problems
    assert verdict.holds, verdict.evidence[:20]
    assert sum(verdict.faults.values()) >= faults
    assert verdict.sent > rate / 2
    assert verdict.answered + sum(verdict.refused.values()) == verdict.sent


@pytest.fixture
def files(tmp_path: Path):
    """A run of three messages: its replies as (id, reply) pairs."""

    def write(*replies: tuple[str, object]) -> Path:
        (tmp_path / SENT).write_text("".join(f"m{i} {i} {i * 10**9}\n" for i in range(3)))
        lines = [f"{(i + 4) * 10**9} {name} {json.dumps(reply)}\n" for i, (name, reply) in enumerate(replies)]
        (tmp_path / REPLIES).write_text("".join(lines) + "99 m0 {cut o")
        (tmp_path / FAULTS).write_text(json.dumps({"what": "kill", "began": 10**9, "ended": 3 * 10**9}) + "\n")
        return tmp_path

    return write


def test_the_checker_takes_what_is_right(files) -> None:
    verdict = check(files(*((f"m{i}", RIGHT[i]) for i in range(3))), RIGHT)
    assert verdict.holds
    assert (verdict.sent, verdict.answered, verdict.duplicates) == (3, 3, 0)
    # m0 was sent before the fault; the first sent since then was answered at 5 s. Nothing came before 4 s.
    assert (verdict.silence_s, verdict.recovery_s, verdict.faults) == (4, 2, {"kill": 1})


def test_the_checker_finds_what_is_lost_wrong_refused_and_repeated(files) -> None:
    refusal = {"error": {"code": "overloaded", "message": "…"}}
    lost = check(files(("m0", RIGHT[0]), ("m0", RIGHT[0]), ("m1", refusal)), RIGHT)
    assert not lost.holds
    assert (lost.answered, lost.duplicates, lost.refused, lost.lost) == (1, 1, {"overloaded": 1}, 1)
    assert "lost: m2, sent at 2.000 s" in lost.evidence
    for wrong in (("m1", RIGHT[2]), ("m1", {"outputs": [1]}), ("m1", "no reply"), ("m7", RIGHT[0])):
        verdict = check(files(*((f"m{i}", RIGHT[i]) for i in range(3)), wrong), RIGHT)
        assert (verdict.wrong, verdict.lost, verdict.holds) == (1, 0, False)
    refused = check(files(("m0", RIGHT[0]), ("m1", RIGHT[1]), ("m2", refusal), ("m2", RIGHT[2])), RIGHT)
    assert (refused.refused, refused.answered, refused.holds) == ({}, 3, True)  # an answer after all


@pytest.fixture
def wire(stack):
    """A client's socket, the proxy, and the server's socket behind it."""
    listener = socket.create_server(("127.0.0.1", 0))
    stack.callback(listener.close)
    proxy = Proxy(listener.getsockname()[1])
    stack.callback(proxy.stop)

    def connect() -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(("127.0.0.1", proxy.port), 5)
        server, _ = listener.accept()
        for end in (client, server):
            end.settimeout(5)
            stack.callback(end.close)
        client.sendall(b"hello")  # once it is through, the proxy knows the connection
        assert server.recv(10) == b"hello"
        return client, server

    return proxy, connect


def test_the_proxy_carries_both_ways_and_delays_in_order(wire) -> None:
    proxy, connect = wire
    client, server = connect()
    client.sendall(b"up")
    assert server.recv(10) == b"up"
    proxy.delay(0.02, 0.02)
    for i in range(20):
        server.sendall(struct.pack("B", i))
    assert b"".join(iter(lambda: client.recv(1), bytes([19]))) == bytes(range(19))
    client.close()
    assert server.recv(10) == b""


def test_a_reset_reaches_both_sides(wire) -> None:
    proxy, connect = wire
    for end in connect():
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            end.recv(10)


def test_a_half_open_connection_is_silent_and_the_next_is_sound(wire) -> None:
    proxy, connect = wire
    client, server = connect()
    proxy.swallow("up")
    client.sendall(b"lost")
    server.sendall(b"down")
    assert client.recv(10) == b"down"
    client.close()
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(10)
    client, server = connect()
    client.sendall(b"up")
    assert server.recv(10) == b"up"
