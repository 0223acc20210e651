"""What is behind ``int8d-make serve --mqtt``: turns, lengths of pieces, and the ACL that keeps devices apart."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from agent.config.tables import Broker, Tls
from agent.repository import pieces
from agent.repository.over_mqtt import PieceLength
from agent.repository.pieces import LEAST, Request
from agent.repository.reasons import Refused
from models.repository.serve import Fair
from tests.agent_process import ROOT
from tests.broker import Mosquitto
from tests.pki import locked_broker
from tests.repository_server import TOPIC, Served, over_mqtt
from tests.test_acl import _User


def _request(number: int, length: int = 1) -> Request:
    return Request(f"{number:016x}", "metadata/timestamp.json", 0, length)


def test_devices_take_turns() -> None:
    waiting = Fair()
    for number in range(3):
        waiting.put("greedy", _request(number))
    waiting.put("other", _request(9))
    taken = [waiting.take(0) for _ in range(5)]
    assert [t and (t[0], int(t[1].id, 16)) for t in taken] == [
        ("greedy", 0), ("other", 9), ("greedy", 1), ("greedy", 2), None,
    ]  # fmt: skip


def test_a_repeated_request_takes_its_own_place() -> None:
    waiting = Fair()
    waiting.put("box1", _request(1, 500))
    waiting.put("box1", _request(2))
    waiting.put("box1", _request(1, 200))
    assert [t and t[1] for t in (waiting.take(0), waiting.take(0), waiting.take(0))] == [
        _request(1, 200), _request(2), None,
    ]  # fmt: skip


def test_what_waits_is_bounded_for_a_device_and_in_all() -> None:
    waiting = Fair(per_device=2, devices=2)
    assert [waiting.put("box1", _request(n)) for n in range(3)] == [True, True, False]
    assert [waiting.put(f"box{n}", _request(0)) for n in (2, 3)] == [True, False]


def test_what_nobody_waits_for_any_more_is_not_answered() -> None:
    now = [0.0]
    waiting = Fair(clock=lambda: now[0])
    waiting.put("box1", _request(1))
    now[0] = 61.0
    waiting.put("box1", _request(2))
    taken = waiting.take(0)
    assert taken is not None
    assert taken[1] == _request(2)


def test_garbage_is_told_from_requests_and_replies() -> None:
    source = random.Random(3)
    request = pieces.encode_request(_request(1))
    reply = pieces.answer(_request(1), b"piece" * 10, 50, "1")
    whole = 0
    for _ in range(5000):
        for payload, decode in ((request, pieces.decode_request), (reply, pieces.decode_reply)):
            bad = bytearray(payload)
            for _ in range(source.randint(1, 4)):
                bad[source.randrange(len(bad))] = source.randrange(256)
            with suppress(pieces.Malformed):
                got = decode(bytes(bad[: source.randint(0, len(bad) + 50)]))
                whole += isinstance(got, pieces.Reply) and got.whole and got.piece != b"piece" * 10
    assert whole == 0


def _asked(carried: int, count: int) -> list[int]:
    """The lengths of so many pieces, at a broker that loses those above ``carried``."""
    length, asked = PieceLength(65536), []
    for _ in range(count):
        asked.append(length.now)
        (length.came if asked[-1] <= carried else length.late)(asked[-1])
    return asked


def test_pieces_stay_with_what_the_broker_carries() -> None:
    asked = _asked(20_000, 30)
    assert sum(length > 20_000 for length in asked) <= 4
    assert set(asked[-20:]) == {16384}


def test_pieces_are_long_again_after_an_outage() -> None:
    length = PieceLength(65536)
    for _ in range(10):
        length.late(length.now)
    assert length.now == LEAST
    for _ in range(10):
        length.came(length.now)
    assert length.now == 65536


@pytest.fixture
def place(tmp_path: Path, pki: Path, stack: ExitStack) -> tuple[Mosquitto, Path, Path]:
    """The sample broker; box1 has an int8d.toml, box2 is named, ``watcher`` serves, ``client1`` operates."""
    repository = tmp_path / "repository"
    (repository / "metadata").mkdir(parents=True)
    (repository / "metadata" / "timestamp.json").write_bytes(b"x" * 100_000)
    config = tmp_path / "int8d.toml"
    config.write_text(
        f'device = "box1"\n[[model]]\nname = "digits"\npath = "x"\n[updates]\nrepository = "{TOPIC}"\n'
        f'root = "{config}"\ntransport = "mqtt"\n'
    )
    written = subprocess.run(
        [sys.executable, "-m", "agent.cli", "acl", str(config), "--device", "box2", "--repository", f"watcher={TOPIC}",
         "--operator", "client1"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    broker = locked_broker(tmp_path / "broker", pki, acl=written.stdout)
    stack.callback(broker.stop)
    return broker, pki, repository


def _serve(place: tuple[Mosquitto, Path, Path], stack: ExitStack, user: str = "watcher") -> None:
    broker, pki, repository = place
    served = Served(repository, broker.port, "--host", "localhost", "--ca", pki / "ca.pem", "--cert",
                    pki / f"{user}.pem", "--key", pki / f"{user}.key")  # fmt: skip
    stack.callback(served.kill)


def _transport(place: tuple[Mosquitto, Path, Path], stack: ExitStack, device: str, user: str = ""):
    broker, pki, _ = place
    user = user or device
    tls = Tls(ca=f"{pki}/ca.pem", cert=f"{pki}/{user}.pem", key=f"{pki}/{user}.key")
    settings = Broker(host="localhost", port=broker.port, tls=tls, reconnect_min_s=0.05, reconnect_max_s=0.2)
    transport = over_mqtt(broker.port, device, broker=settings, stall_s=1.5)
    stack.callback(transport.close)
    return transport


def _user(place: tuple[Mosquitto, Path, Path], stack: ExitStack, user: str) -> _User:
    broker, pki, _ = place
    peer = _User(broker.port, ["#"], client_id=f"{user}-probe", ca=f"{pki}/ca.pem", cert=f"{pki}/{user}.pem",
                 key=f"{pki}/{user}.key")  # fmt: skip
    stack.callback(peer.close)
    return peer


def test_under_the_acl_each_device_reads_its_own_pieces_alone(place, stack: ExitStack) -> None:
    _serve(place, stack)
    listener = _user(place, stack, "box2")
    assert b"".join(_transport(place, stack, "box1").read("metadata/timestamp.json")) == b"x" * 100_000
    assert listener.topics(0.5) == set()
    assert b"".join(_transport(place, stack, "box2").read("metadata/timestamp.json")) == b"x" * 100_000
    assert listener.topics(0.5) == {pieces.reply_topic(TOPIC, "box2")}


def test_under_the_acl_nobody_asks_for_another_or_answers_in_the_servers_place(place, stack: ExitStack) -> None:
    with pytest.raises(Refused, match="int8d acl") as refused:
        b"".join(_transport(place, stack, "box1", user="box2").read("metadata/timestamp.json"))
    assert refused.value.code == "unreachable"
    for user in ("box1", "box2", "client1", "camera1"):
        peer = _user(place, stack, user)
        assert not peer.may_publish(pieces.reply_topic(TOPIC, "box1")), user
    assert _user(place, stack, "watcher").may_publish(pieces.reply_topic(TOPIC, "box1"))


def test_under_the_acl_an_operator_starts_updates_and_reads_where_they_stand(place, stack: ExitStack) -> None:
    load, status = (f"int8d/box1/v2/repository/models/digits/{what}" for what in ("load", "status"))
    operator, box1, box2 = (_user(place, stack, user) for user in ("client1", "box1", "box2"))
    assert operator.may_publish(load)
    assert not box2.may_publish(load)
    assert box1.may_publish(status)
    assert (box1.topics(0.5), operator.topics(0.1), box2.topics(0.1)) == ({load}, {status}, set())
    assert not operator.may_publish(status)
