"""Replies that are stored before they are published: their order, their marks, their bounds, what survives."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.journal import Journal
from agent.mqtt.messages import Outgoing
from agent.mqtt.outbox import WINDOW, Outbox
from agent.mqtt.outflow import NO_CONNECTION, NO_READER


class FakeSession:
    """A broker that confirms what a test lets it; what was published is in ``seen``."""

    def __init__(self) -> None:
        self.connected = False
        self.confirms = True
        self.verdict: Callable[[Outgoing], str | None] = lambda message: None
        self.seen: list[Outgoing] = []
        self.waiting: list[tuple[Outgoing, Callable[[str | None], None]]] = []

    def publish(self, message, confirmed=None, expires=None, once=False) -> None:
        assert once
        if not self.connected:
            confirmed(NO_CONNECTION)
            return
        self.seen.append(message)
        if self.confirms:
            confirmed(self.verdict(message))
        else:
            self.waiting.append((message, confirmed))

    def lose(self) -> None:
        self.connected = False
        waiting, self.waiting = self.waiting, []
        for _, confirmed in waiting:
            confirmed(NO_CONNECTION)

    @property
    def payloads(self) -> list[bytes]:
        return [m.payload for m in self.seen]


class House:
    """An outbox on a session; ``put`` waits until each is stored."""

    def __init__(self, folder: Path, connected: bool = True, max_bytes: int = 1 << 20, max_age_s: float | None = None,
                 **options) -> None:  # fmt: skip
        self.session = FakeSession()
        path = folder / "outbox.db"
        options = {"subscriber_wait_s": 0.0} | options
        self.outbox = Outbox(lambda dropped: Journal(path, max_bytes, max_age_s, True, dropped), **options)
        self.outbox.attach(self.session)
        if connected:
            self.connect()

    def connect(self) -> None:
        self.session.connected = True
        self.outbox.connected()

    def put(self, *payloads: bytes) -> list[bool]:
        outcome: list[bool] = []
        done = threading.Event()

        def stored(safe: bool) -> None:
            outcome.append(safe)
            if len(outcome) == len(payloads):
                done.set()

        for payload in payloads:
            self.outbox.put(Outgoing("out/1", payload, 1, False, b"id", None, "text/plain"), stored)
        assert done.wait(20)
        return outcome

    def wait(self, holds: Callable[[], object], timeout: float = 20) -> None:
        until = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < until, (self.outbox.stats(), self.session.payloads)
            time.sleep(0.005)


@pytest.fixture
def house(tmp_path: Path, stack):
    def make(**options) -> House:
        house = House(tmp_path, **options)
        stack.callback(house.outbox.close)
        return house

    return make


def _numbers(*bounds: int) -> list[bytes]:
    return [b"%d" % i for i in range(*bounds)]


def test_with_a_broker_replies_go_out_as_they_are_and_are_forgotten(house) -> None:
    h = house()
    h.wait(lambda: h.outbox._live)
    assert h.put(*_numbers(5)) == [True] * 5
    h.wait(lambda: h.session.payloads == _numbers(5))
    assert all(m == Outgoing("out/1", m.payload, 1, False, b"id", None, "text/plain") for m in h.session.seen)
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert h.outbox.stats()["replayed"] == 0


def test_without_a_broker_they_are_safe_and_follow_in_order_and_marked(house) -> None:
    h = house(connected=False)
    before = time.time_ns() // 1000
    assert h.put(*_numbers(200)) == [True] * 200
    assert h.session.seen == []
    assert h.outbox.stats()["waiting"] == 200
    h.connect()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert h.session.payloads == _numbers(200)
    for message in h.session.seen:
        marks = dict(message.user)
        assert marks["replay"] == "true"
        assert before <= int(marks["stored_at"]) <= time.time_ns() // 1000
        assert (message.topic, message.correlation, message.content_type) == ("out/1", b"id", "text/plain")
    assert h.outbox.stats()["replayed"] == 200


def test_what_was_not_confirmed_comes_again_after_a_restart(house) -> None:
    h = house()
    h.wait(lambda: h.outbox._live)
    h.session.confirms = False
    h.put(*_numbers(5))
    h.wait(lambda: len(h.session.waiting) == 5)
    h.session.waiting[0][1](None)
    h.session.waiting[2][1](None)
    h.outbox.close()
    again = house()
    again.wait(lambda: again.outbox.stats()["waiting"] == 0)
    assert again.session.payloads == [b"1", b"3", b"4"]


def test_what_was_lost_with_the_connection_comes_again_before_what_is_new(house) -> None:
    h = house()
    h.wait(lambda: h.outbox._live)
    h.session.confirms = False
    h.put(*_numbers(5))
    h.wait(lambda: len(h.session.waiting) == 5)
    h.session.waiting.pop(1)[1](None)  # and this one must not
    h.session.lose()
    h.put(*_numbers(5, 8))
    h.session.seen.clear()
    h.session.confirms = True
    h.connect()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert h.session.payloads == [b"0", *_numbers(2, 8)]


def test_new_replies_queue_behind_the_backlog_and_the_window_holds(house) -> None:
    h = house(connected=False)
    h.put(*_numbers(300))
    h.session.confirms = False
    h.connect()
    h.wait(lambda: len(h.session.waiting) == WINDOW)
    h.put(*_numbers(300, 310))
    time.sleep(0.05)
    assert len(h.session.waiting) == WINDOW
    while h.outbox.stats()["waiting"]:
        if h.session.waiting:
            h.session.waiting.pop(0)[1](None)
        else:
            time.sleep(0.001)
    assert h.session.payloads == _numbers(310)
    h.wait(lambda: h.outbox._live)
    h.session.confirms = True
    h.put(b"live")
    h.wait(lambda: h.session.payloads[-1] == b"live")
    assert h.session.seen[-1].user == ()


def test_at_first_a_reply_that_nobody_subscribes_to_waits_for_a_subscriber(house) -> None:
    h = house(connected=False, subscriber_wait_s=60.0)
    h.put(*_numbers(5))
    readers = threading.Event()
    h.session.verdict = lambda message: None if readers.is_set() else NO_READER
    h.connect()
    h.wait(lambda: len(h.session.seen) >= 2)
    assert set(h.session.payloads) == {b"0"}
    h.session.seen.clear()
    readers.set()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert list(dict.fromkeys(h.session.payloads)) == _numbers(5)


def test_later_nobody_waits_for_a_subscriber(house) -> None:
    h = house()
    h.session.verdict = lambda message: NO_READER
    h.put(*_numbers(3))
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert h.session.payloads == _numbers(3)
    assert h.outbox.stats()["dropped_refused"] == 0


def test_what_the_broker_refuses_blocks_nothing_and_is_counted(house, caplog) -> None:
    h = house()
    h.session.verdict = lambda message: "Not authorized" if message.payload == b"1" else None
    h.put(*_numbers(3))
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert h.session.payloads == _numbers(3)
    assert h.outbox.stats()["dropped_refused"] == 1
    assert "Not authorized" in caplog.text


def test_drops_are_counted_and_logged_but_not_each(house, caplog) -> None:
    h = house(connected=False, max_bytes=5000)
    for i in range(100):
        h.put(b"%03d" % i * 30)
    stats = h.outbox.stats()
    assert stats["dropped_bytes"] == 100 - stats["waiting"] > 50
    assert len([r for r in caplog.records if "outbox.max_bytes" in r.getMessage()]) == 1
    h.connect()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert [int(p[:3]) for p in h.session.payloads] == list(range(stats["dropped_bytes"], 100))


def test_what_is_too_old_is_dropped(house) -> None:
    h = house(connected=False, max_age_s=0.2)
    h.put(*_numbers(3))
    h.wait(lambda: h.outbox.stats()["dropped_age"] == 3)
    h.put(b"new")
    h.connect()
    h.wait(lambda: h.session.payloads == [b"new"])


def test_a_backlog_is_drained_no_faster_than_asked_for(house) -> None:
    h = house(connected=False, replay_rate=50)
    h.put(*_numbers(20))
    begun = time.monotonic()
    h.connect()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert time.monotonic() - begun > 19 / 50 * 0.99
    assert h.session.payloads == _numbers(20)


def test_where_nothing_can_be_stored_the_caller_is_told(tmp_path: Path, stack, caplog) -> None:
    (tmp_path / "state").write_text("no folder")
    h = House(tmp_path / "state")
    stack.callback(h.outbox.close)
    assert h.put(b"a", b"b") == [False, False]
    assert h.outbox.stats()["unavailable"] == 2
    assert h.outbox.stats()["failure"]
    assert h.session.seen == []
    assert "without being safe" in caplog.text


def test_a_connection_that_comes_and_goes_loses_and_reorders_nothing(house) -> None:
    h = house(connected=False)
    stop = threading.Event()

    def flap() -> None:
        for i in itertools.count():
            h.session.confirms = i % 3 != 1
            h.connect()
            if stop.wait(0.004):
                break
            h.session.lose()
            stop.wait(0.002)

    thread = threading.Thread(target=flap)
    thread.start()
    for i in range(0, 2000, 5):
        h.put(*_numbers(i, i + 5))
    stop.set()
    thread.join()
    h.session.lose()
    h.session.confirms = True
    h.connect()
    h.wait(lambda: h.outbox.stats()["waiting"] == 0)
    assert list(dict.fromkeys(h.session.payloads)) == _numbers(2000)  # each one's first time is in order
    last = {payload: i for i, payload in enumerate(h.session.payloads)}
    assert sorted(last, key=last.get) == _numbers(2000)  # and its last


def test_a_thousand_a_second_are_stored(tmp_path: Path) -> None:
    """Not how fast: that a commit takes along whatever waits."""
    commits = 0
    journal = Journal(tmp_path / "outbox.db", 1 << 30)
    transaction = journal._transaction

    def counting(*args):
        nonlocal commits
        commits += 1
        return transaction(*args)

    journal._transaction = counting
    stored = []
    for i in range(1000):
        journal.put(b"head", b"%d" % i + bytes(600), stored.append)
    journal.close()
    assert stored == list(range(1, 1001))
    assert commits < 500
