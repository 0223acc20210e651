"""What may be asked for on the load topic, and how it is answered."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config.tables import Updates as Settings
from agent.disk import Disk
from agent.mqtt.messages import Incoming, Outgoing
from agent.updates.remote import Remote
from agent.updates.store import Store
from agent.updates.updater import Updates
from tests.updates.bare import MODEL, BareSteps

SETTINGS = Settings(interval=0, max_wishes=8)
MOST = 32  # messages that wait
LOAD = f"int8d/box1/v2/repository/models/{MODEL}/load"


class World:
    """A device whose thread of updates does not run: what is asked for is counted, and waits."""

    def __init__(self, folder: Path) -> None:
        disk = Disk()
        self.asked: list[tuple[str, int | None]] = []
        self.sent: list[Outgoing] = []
        self.updates = Updates("box1", [MODEL], Store(folder, disk), SETTINGS, BareSteps(), disk)  # type: ignore[arg-type]
        ask = self.updates.ask

        def asked(model: str, action: str, answer: object, release: int | None = None, message: str = "") -> None:
            ask(model, action, answer, release, message)  # type: ignore[arg-type]
            self.asked.append((action, release))

        self.updates.ask = asked  # type: ignore[method-assign, assignment]
        done = queue.SimpleQueue[Incoming]()
        self.done = done
        self.remote = Remote("int8d/box1", self.updates, self.sent.append, done.put, lambda m: m.response_topic, MOST)

    def take(
        self, payload: bytes, topic: str = LOAD, retained: bool = False, mid: int = 1, duplicate: bool = False
    ) -> bool:
        message = Incoming(topic, payload, 1, mid, duplicate, 1, "me/reply", b"7", retained=retained)
        taken = self.remote.take(message)
        if taken:
            assert self.done.get(timeout=5) is message
        return taken

    def error(self) -> str:
        (reply,) = self.sent
        assert (reply.topic, reply.correlation) == ("me/reply", b"7")
        return str(json.loads(reply.payload)["error"]["code"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.updates.close()


@pytest.mark.parametrize(
    ("payload", "wish"),
    [
        (b"", ("install", None)),
        (b"{}", ("install", None)),
        (b'{"parameters": {"release": 7}}', ("install", 7)),
        (b'{"parameters": {"action": "check"}}', ("check", None)),
        (b'{"parameters": {"action": "rollback"}, "more": 1}', ("rollback", None)),
    ],
)
def test_a_wish_is_understood(world: World, payload: bytes, wish: tuple[str, int | None]) -> None:
    assert world.take(payload)
    assert world.asked == [wish]
    assert world.sent == []


@pytest.mark.parametrize(
    "payload",
    [
        b"install",
        b"[]",
        b'{"parameters": {"action": "format"}}',
        b'{"parameters": {"release": "7"}}',
        b"\xff",
        b"[" * 4000,
        b" " * 4097,
    ],
)
def test_what_is_not_understood_is_answered_and_not_done(world: World, payload: bytes) -> None:
    assert world.take(payload)
    assert world.asked == []
    assert world.error() == "invalid_input"


def test_a_model_that_is_not_here_is_answered(world: World) -> None:
    assert world.take(b"", LOAD.replace(MODEL, "other"))
    assert world.error() == "invalid_input"


def test_too_many_wishes_are_refused(world: World) -> None:
    for _ in range(SETTINGS.max_wishes):
        world.take(b"")
    assert world.sent == []
    world.take(b"")
    assert world.error() == "busy"


def test_a_flood_that_comes_faster_than_the_disk_takes_wishes_is_refused(world: World) -> None:
    slow = threading.Event()
    world.updates.ask = lambda *_: slow.wait(10)  # type: ignore[method-assign, assignment]
    messages = [Incoming(LOAD, b"", 0, 0, False, 1, "me/reply", b"7") for _ in range(MOST + 40)]
    for message in messages:
        world.remote.take(message)
    assert len(world.sent) in (39, 40)  # one may have been taken out already
    assert {json.loads(m.payload)["error"]["code"] for m in world.sent} == {"busy"}
    slow.set()
    assert {id(world.done.get(timeout=5)) for _ in messages} == {id(m) for m in messages}


def test_what_is_retained_is_no_wish(world: World) -> None:
    assert world.take(b'{"parameters": {"action": "rollback"}}', retained=True)
    assert world.asked == world.sent == []


def test_a_rollback_that_the_broker_delivers_twice_is_done_once(world: World) -> None:
    back = b'{"parameters": {"action": "rollback"}}'
    world.take(back, mid=5)
    world.take(back, mid=5, duplicate=True)
    assert world.asked == [("rollback", None)]
    world.take(back, mid=6, duplicate=True)  # the first time, it was lost on its way here
    world.take(b"", mid=5, duplicate=True)
    assert world.asked == [("rollback", None), ("rollback", None), ("install", None)]
    assert world.sent == []


def test_other_topics_are_left_to_others(world: World) -> None:
    assert not world.take(b"", "cameras/1/frame")
