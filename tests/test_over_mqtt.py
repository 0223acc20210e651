"""The repository over MQTT alone: a real broker, a real server, files whole and byte for byte whatever is lost."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.config.tables import Broker, Updates
from agent.repository import fetch, find, pieces
from agent.repository.over_mqtt import OverMqtt
from agent.repository.pieces import Request
from agent.repository.reasons import Refused
from agent.updates import child
from tests.agent_process import Peer
from tests.broker import Mosquitto
from tests.lossy import LossyProxy
from tests.repository import make
from tests.repository_server import TOPIC, Liar, Served, over_mqtt
from tests.variants import variant

BIG = "targets/digits/aa.1.int8.safetensors"
SIZE = 3_000_017


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "metadata").mkdir(parents=True)
    (folder / "targets" / "digits").mkdir(parents=True)
    (folder / "metadata" / "timestamp.json").write_bytes(b'{"signed": 1}')
    (folder / "metadata" / "empty.json").write_bytes(b"")
    (folder / BIG).write_bytes(random.Random(1).randbytes(SIZE))
    return folder


@pytest.fixture
def serve(repository: Path, broker: Mosquitto, stack: ExitStack) -> Callable[..., Served]:
    def make(*options: object) -> Served:
        served = Served(repository, broker.port, *options)
        stack.callback(served.kill)
        return served

    return make


@pytest.fixture
def device(broker: Mosquitto, stack: ExitStack) -> Callable[..., OverMqtt]:
    def make(name: str = "box1", **kwargs: object) -> OverMqtt:
        transport = over_mqtt(broker.port, name, **kwargs)  # type: ignore[arg-type]
        stack.callback(transport.close)
        return transport

    return make


@pytest.fixture
def liar(broker: Mosquitto, stack: ExitStack) -> Callable[..., Liar]:
    def make(reply: Callable[[Request], Iterator[bytes]]) -> Liar:
        found = Liar(broker.port, reply)
        stack.callback(found.close)
        return found

    return make


def _whole(transport: OverMqtt, path: str = BIG, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(transport.read(path, offset, length))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_files_come_byte_for_byte(serve, device, repository: Path, protocol: str) -> None:
    serve("--protocol", protocol)
    transport = device(protocol=protocol)
    for path in ("metadata/timestamp.json", "metadata/empty.json", BIG):
        assert _whole(transport, path) == (repository / path).read_bytes()


def test_ranges_come_as_asked_for(serve, device, repository: Path) -> None:
    serve()
    transport = device()
    data = (repository / BIG).read_bytes()
    for offset, length in ((0, 1), (1, 70_000), (65_536, 65_536), (SIZE - 5, None), (2_900_000, None), (7, 0)):
        end = SIZE if length is None else offset + length
        assert _whole(transport, offset=offset, length=length) == data[offset:end], (offset, length)
    assert _whole(transport, offset=SIZE) == b""
    assert _whole(transport, offset=SIZE - 5, length=100) == data[-5:]


def test_a_caller_that_has_enough_may_stop_and_go_on_later(serve, device, repository: Path) -> None:
    serve()
    transport = device()
    reading = transport.read(BIG)
    start = next(reading)
    reading.close()
    assert start + _whole(transport, offset=len(start)) == (repository / BIG).read_bytes()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_killed_in_the_middle_costs_nothing(
    serve, device, broker: Mosquitto, repository: Path, protocol: str
) -> None:
    serve("--protocol", protocol)
    got = []
    for count, data in enumerate(device(protocol=protocol, max_bytes_per_s=4_000_000).read(BIG)):
        got.append(data)
        if count == 5:
            broker.kill()
            threading.Timer(0.5, broker.start).start()
    assert b"".join(got) == (repository / BIG).read_bytes()


def test_a_server_killed_in_the_middle_costs_nothing(serve, device, repository: Path) -> None:
    server = serve()
    got = []
    restart = threading.Timer(0.5, server.start)
    for count, data in enumerate(device(max_bytes_per_s=4_000_000).read(BIG)):
        got.append(data)
        if count == 5:
            server.kill()
            restart.start()
    restart.join()
    assert b"".join(got) == (repository / BIG).read_bytes()


def test_losses_and_lost_connections_cost_nothing(serve, broker: Mosquitto, repository: Path, stack: ExitStack) -> None:
    serve()
    line = LossyProxy(broker.port, loss=0.1, hang_up=0.02)
    stack.callback(line.close)
    transport = over_mqtt(line.port, request_timeout_s=0.2)
    stack.callback(transport.close)
    for _ in range(30):  # which messages fall into whose lot depends on the threads' order
        assert _whole(transport, length=500_000) == (repository / BIG).read_bytes()[:500_000]
        if line.lost["up"] and line.lost["down"] and line.ended:
            return
    pytest.fail(f"the line did no harm: {line.lost}, {line.ended} connections ended")


def test_a_server_that_is_told_to_stop_stops(serve) -> None:
    assert serve().stop() == 0


OUTSIDE = [
    "metadata/../secret", "../secret", "/etc/passwd", "targets/../../secret", "metadata/.hidden", "secret", "metadata",
    "metadata/", "targets//digits/aa.1.int8.safetensors", "metadata/link", "targets/out/secret", "metadata/pipe",
    "metadata/\x00", "metadata/none.json", "metadata/timestamp.json\n",
]  # fmt: skip


def test_what_is_no_file_of_the_repository_is_not_found(serve, device, repository: Path) -> None:
    (repository / "secret").write_text("secret")
    (repository / "metadata" / ".hidden").write_text("secret")
    (repository.parent / "outside").mkdir()
    (repository.parent / "outside" / "secret").write_text("secret")
    os.symlink(repository / "secret", repository / "metadata" / "link")
    os.symlink(repository.parent / "outside", repository / "targets" / "out")
    os.mkfifo(repository / "metadata" / "pipe")
    serve()
    transport = device()
    said = {}
    for path in OUTSIDE:
        try:
            said[path] = repr(_whole(transport, path))
        except Refused as e:
            said[path] = e.code
    assert said == dict.fromkeys(OUTSIDE, "not_found")


def test_nobody_there_is_unreachable_and_says_what_to_run(device) -> None:
    with pytest.raises(Refused, match=f"int8d/repository/get/box1.*serve --mqtt --topic {TOPIC}") as refused:
        _whole(device(stall_s=1.5))
    assert refused.value.code == "unreachable"


def test_no_broker_is_unreachable_and_says_where(device, broker: Mosquitto) -> None:
    broker.kill()
    with pytest.raises(Refused, match=f"127.0.0.1:{broker.port}") as refused:
        _whole(device(stall_s=1.0))
    assert refused.value.code == "unreachable"


CONTENT = random.Random(2).randbytes(200_000)


def _true(request: Request, content: bytes = CONTENT, version: str = "1") -> bytes:
    piece = content[request.offset : request.offset + request.length]
    return pieces.answer(request, piece, len(content), version)


def test_a_damaged_piece_is_asked_for_again(device, liar) -> None:
    damaged = set()

    def reply(request: Request) -> Iterator[bytes]:
        payload = _true(request)
        if request.id not in damaged:
            damaged.add(request.id)
            payload = payload[:-1] + bytes([payload[-1] ^ 1])
        yield payload

    liar(reply)
    assert _whole(device()) == CONTENT
    assert damaged


LIES: dict[str, Callable[[Request], bytes]] = {
    "a byte changed": lambda r: _true(r)[:-1] + b"?" if not _true(r).endswith(b"?") else _true(r)[:-1] + b"!",
    "a byte short": lambda r: _true(r)[:-1],
    "a byte more": lambda r: _true(r) + b"x",
    "more than was asked for": lambda r: pieces.answer(r, CONTENT, len(CONTENT), "1"),
    "nothing": lambda r: pieces.answer(r, b"", len(CONTENT), "1"),
    "a drop at a time": lambda r: pieces.answer(r, CONTENT[r.offset : r.offset + 1], len(CONTENT), "1"),
    "of another place": lambda r: _true(Request(r.id, r.path, r.offset + 1, r.length)),
    "of another file": lambda r: _true(Request(r.id, "metadata/root.json", r.offset, r.length)),
    "beyond its end": lambda r: pieces.answer(r, CONTENT[: r.length], 10, "1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_always_lies_is_given_up(device, liar, lie: str) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        yield LIES[lie](request)

    server = liar(reply)
    with pytest.raises(Refused) as refused:
        _whole(device())
    assert refused.value.code == "damaged"
    assert len(server.requests) < 20


def test_doubled_foreign_and_meaningless_replies_are_ignored(device, liar) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        yield b""
        yield b"x" * 300_000
        yield b"[" * 2000 + b"\n"
        yield b'{"id": 5}\n'
        yield _true(Request("0123456789abcdef", request.path, request.offset, request.length), b"\0" * len(CONTENT))
        yield _true(request)
        yield _true(request, b"\1" * len(CONTENT))

    liar(reply)
    assert _whole(device()) == CONTENT


def test_replies_out_of_order_are_put_in_order(device, liar) -> None:
    held: list[bytes] = []

    def reply(request: Request) -> Iterator[bytes]:
        if request.offset == 0:
            yield _true(request)
            return
        held.append(_true(request))
        if len(held) == 2 or request.offset + request.length == len(CONTENT):
            yield from reversed(held)
            held.clear()

    liar(reply)
    assert _whole(device()) == CONTENT


def test_a_file_that_changes_meanwhile_is_not_mixed(device, liar) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        yield _true(request, version="1" if request.offset == 0 else "2")

    liar(reply)
    with pytest.raises(Refused) as refused:
        _whole(device())
    assert refused.value.code == "mix_and_match"


def test_a_drip_is_too_slow(device, liar) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        time.sleep(0.2)
        piece = CONTENT[request.offset : request.offset + pieces.LEAST]
        yield pieces.answer(request, piece, len(CONTENT), "1")

    liar(reply)
    with pytest.raises(Refused) as refused:
        _whole(device(stall_s=1.0, min_bytes_per_s=50_000))
    assert refused.value.code == "too_slow"


def test_an_answer_that_stops_in_the_middle_is_unreachable(device, liar) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        if request.offset == 0:
            yield _true(request)

    liar(reply)
    with pytest.raises(Refused, match="any more") as refused:
        _whole(device(stall_s=1.5))
    assert refused.value.code == "unreachable"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("limit", ["message_size_limit 20000", "max_packet_size 20000"])
def test_a_broker_that_takes_small_messages_only_is_served(
    tmp_path: Path, repository: Path, stack: ExitStack, protocol: str, limit: str
) -> None:
    (tmp_path / "small").mkdir()
    broker = Mosquitto(tmp_path / "small", limit)
    stack.callback(broker.stop)
    served = Served(repository, broker.port, "--protocol", protocol)
    stack.callback(served.kill)
    transport = over_mqtt(broker.port, protocol=protocol)
    stack.callback(transport.close)
    assert _whole(transport, length=500_000) == (repository / BIG).read_bytes()[:500_000]


def test_two_devices_progress_at_once(serve, device) -> None:
    """One that asks for much does not keep the other waiting for its end."""
    serve("--max-bytes-per-s", 2_000_000)
    greedy, other = device("greedy"), device("other")
    ended: list[str] = []

    def read(name: str, transport: OverMqtt, length: int | None) -> None:
        _whole(transport, length=length)
        ended.append(name)

    first = threading.Thread(target=read, args=("greedy", greedy, None))
    first.start()
    time.sleep(0.3)
    read("other", other, 200_000)
    first.join()
    assert ended == ["other", "greedy"]


def test_the_server_keeps_to_its_limit(serve, device) -> None:
    serve("--max-bytes-per-s", 300_000)
    began = time.monotonic()
    _whole(device(), length=600_000)
    assert time.monotonic() - began >= 1.4  # less a burst


def test_the_device_keeps_to_its_limit(serve, device) -> None:
    serve()
    began = time.monotonic()
    _whole(device(max_bytes_per_s=300_000), length=600_000)
    assert time.monotonic() - began >= 1.4


def test_what_is_no_request_does_not_end_the_server(serve, device, broker: Mosquitto, stack: ExitStack) -> None:
    serve()
    peer = Peer(broker.port, [pieces.reply_topic(TOPIC, "#")])
    stack.callback(peer.close)
    good = {"id": "0123456789abcdef", "path": "metadata/timestamp.json", "offset": 0, "length": 10}
    for change in ({"id": "x"}, {"offset": -1}, {"length": 0}, {"length": 1 << 40}, {"path": "x" * 600}, {"path": 5}):
        peer.send(pieces.request_topic(TOPIC, "box9"), json.dumps(good | change).encode())
    for payload in (b"", b"[" * 2000, b"x" * 100_000, b"\xff\xfe"):
        peer.send(pieces.request_topic(TOPIC, "box9"), payload)
    peer.send(pieces.request_topic(TOPIC, "a b"), json.dumps(good).encode())
    assert _whole(device(), "metadata/timestamp.json") == b'{"signed": 1}'
    assert {peer.receive().topic} == {pieces.reply_topic(TOPIC, "box1")}
    assert peer.messages.empty()


def test_serving_without_mqtt_says_what_else_serves(repository: Path, capsys) -> None:
    from models import cli

    assert cli.main(["serve", "--repo", str(repository)]) == 2
    assert "any web server" in capsys.readouterr().err


def test_a_broker_that_takes_the_connection_and_says_nothing_is_unreachable(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = over_mqtt(silent.getsockname()[1], stall_s=1.0)
        stack.callback(transport.close)
        with pytest.raises(Refused) as refused:
            _whole(transport)
    assert refused.value.code == "unreachable"


def test_a_release_is_found_and_fetched_over_mqtt_alone(tmp_path: Path, broker: Mosquitto, stack: ExitStack) -> None:
    """The steps in their child processes, as the daemon starts them; the broker dies while the model comes."""
    repo = make(tmp_path)
    model = variant(tmp_path, 1)
    repo.publish(model, release=3)
    served = Served(repo.folder, broker.port)
    stack.callback(served.kill)
    settings = Updates(repository=TOPIC, root=str(repo.root), transport="mqtt", max_bytes_per_s=16_000,
                       request_timeout_s=1.0)  # fmt: skip
    here = Broker(port=broker.port, reconnect_min_s=0.05, reconnect_max_s=0.2)
    folder = tmp_path / "updates"
    folder.mkdir()
    ask = find.Ask(folder=str(folder), device="box1", model="digits", settings=settings, broker=here)
    found = child.run("find", ask, find.Found, timeout_s=30)
    assert found.target is not None
    assert found.target.release.release == 3

    seen: list[int] = []

    def progress(done: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            assert done < found.target.bytes
            broker.kill()
            threading.Timer(0.3, broker.start).start()

    part = tmp_path / "part"
    wanted = fetch.Ask(target=found.target, part=str(part), device="box1", settings=settings, broker=here)
    fetched = child.run("fetch", wanted, fetch.Fetched, timeout_s=60, progress=progress)
    assert fetched.bytes == found.target.bytes
    assert part.read_bytes() == model.read_bytes()
