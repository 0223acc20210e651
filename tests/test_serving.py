"""Queue, deadlines, routes and histograms, each alone."""

from __future__ import annotations

import random
import threading
import time
import weakref

import pytest

from agent.errors import ConfigError
from agent.logs import Sparing
from agent.mqtt.routes import Filter, can_publish, check_template, fill
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.telemetry.histogram import Histogram


class Refusals:
    def __init__(self) -> None:
        self.list: list[tuple[str, str]] = []
        self.event = threading.Event()

    def __call__(self, request: Request, code: str, message: str) -> None:
        self.list.append((request.id or "", code))
        self.event.set()


def request(name: str, source: str = "", deadline_ms: int | None = None, size: int = 0) -> Request:
    r = Request(bytes(size), "m", lambda *a: None, id=name, source=source)
    if deadline_ms is not None:
        r.deadline = time.monotonic_ns() + deadline_ms * 1_000_000
    return r


def drain(admission: Admission) -> list[str]:
    names = []
    while (r := admission.take(0)) is not None:
        names.append(r.id or "")
    return names


@pytest.mark.parametrize(
    ("overload", "kept", "refused"),
    [
        ("reject", ["a1", "a2"], [("a3", "overloaded"), ("b1", "overloaded")]),
        ("drop_oldest", ["a3", "b1"], [("a1", "overloaded"), ("a2", "overloaded")]),
        ("latest_per_source", ["a3", "b1"], [("a1", "superseded"), ("a2", "superseded")]),
    ],
)
def test_every_policy_refuses_by_name_and_keeps_order(overload, kept, refused) -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    lane = Lane("lane", 2, overload)
    for name in ("a1", "a2", "a3", "b1"):
        admission.put(request(name, name[0]), lane)
    assert drain(admission) == kept
    assert refusals.list == refused
    admission.close()


def test_a_source_that_sends_often_keeps_its_turn() -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    lane = Lane("lane", 10, "latest_per_source")
    for name in ("a1", "b1", "a2", "c1", "a3"):
        admission.put(request(name, name[0], size=10), lane)
    assert drain(admission) == ["a3", "b1", "c1"]
    assert refusals.list == [("a1", "superseded"), ("a2", "superseded")]
    admission.put(request("d1", "d", size=10), lane)  # all of that is forgotten
    assert drain(admission) == ["d1"]
    admission.close()


def test_what_was_withdrawn_is_not_kept_behind_what_waits() -> None:
    admission = Admission(Refusals())
    lane = Lane("lane", 1000)
    admission.put(request("first"), lane)
    late = [request(str(i), deadline_ms=1, size=1000) for i in range(20)]
    gone = [weakref.ref(r) for r in late]
    for r in late:
        admission.put(r, lane)
    del late, r
    until = time.monotonic() + 5
    while any(ref() is not None for ref in gone) and time.monotonic() < until:
        time.sleep(0.01)
    assert [ref() for ref in gone] == [None] * 20
    assert drain(admission) == ["first"]
    admission.close()


def test_lanes_do_not_take_each_others_room_but_share_the_bytes() -> None:
    refusals = Refusals()
    admission = Admission(refusals, max_bytes=100)
    one, two = Lane("one", 1), Lane("two", 5, "drop_oldest")
    admission.put(request("1", size=40), one)
    admission.put(request("2", size=40), two)
    admission.put(request("3", size=40), two)
    assert refusals.list == [("2", "overloaded")]
    admission.put(request("4", size=90), two)  # even without the other of its lane there is no room
    assert refusals.list[1:] == [("3", "overloaded"), ("4", "overloaded")]
    assert drain(admission) == ["1"]
    admission.put(request("5", size=1000), one)  # alone, anything goes: the payload's own limit holds
    assert drain(admission) == ["5"]
    admission.close()


def test_a_deadline_beyond_what_a_clock_can_wait_for_stops_no_timer() -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    lane = Lane("x")
    never = request("never")
    never.deadline = 10**30
    admission.put(never, lane)
    for name in ("soon", "later"):
        refusals.event.clear()
        admission.put(request(name, deadline_ms=10), lane)
        assert refusals.event.wait(10)
    assert refusals.list == [("soon", "expired"), ("later", "expired")]
    admission.close()


def test_a_deadline_is_kept_by_a_timer_while_nobody_takes() -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    start = time.monotonic()
    admission.put(request("late", deadline_ms=5000), Lane("l"))
    admission.put(request("soon", deadline_ms=50), Lane("l"))
    assert refusals.event.wait(2)
    assert 0.04 < time.monotonic() - start < 1
    assert refusals.list == [("soon", "expired")]
    assert drain(admission) == ["late"]
    admission.close()


def test_a_deadline_beyond_all_clocks_does_not_end_the_timer() -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    admission.put(request("patient", deadline_ms=10**16), Lane("l"))
    time.sleep(0.05)  # the timer takes it up
    admission.put(request("soon", deadline_ms=10), Lane("l"))
    assert refusals.event.wait(5)
    assert refusals.list == [("soon", "expired")]
    admission.close()


@pytest.mark.parametrize(
    ("filter", "topic", "found"),
    [
        ("a/+/c", "a/b/c", ("b",)),
        ("a/+/c", "a/b/d", None),
        ("a/+", "a/b/c", None),
        ("a/+", "a/", ("",)),
        ("a/#", "a/b/c", ("b/c",)),
        ("a/#", "a", ("",)),
        ("+/+", "a/b", ("a", "b")),
        ("#", "a/b", ("a/b",)),
        ("#", "$SYS/x", None),
        ("+/x", "$SYS/x", None),
        ("a/b", "a/b", ()),
    ],
)
def test_filters_match_as_the_standard_says(filter: str, topic: str, found: tuple[str, ...] | None) -> None:
    assert Filter(filter).match(topic) == found


@pytest.mark.parametrize("bad", ["", "a/b+", "a#", "#/a", "a/#/b", "a\x00"])
def test_bad_filters_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        Filter(bad)


def test_templates() -> None:
    assert fill("p/{2}/{1}/{2}", ("x", "y")) == "p/y/x/y"
    for bad in ("p/{3}", "p/{0}", "p/{x}", "p/+", "", "p/#"):
        with pytest.raises(ConfigError):
            check_template(bad, 2, "route")
    assert can_publish("a/b")
    assert not any(can_publish(t) for t in ("", "a/+", "#", "$SYS/a", "a\x00", "a" + "/" * 128))


def test_percentiles_are_within_a_sixteenth_and_merge() -> None:
    random.seed(1)
    values = [int(random.lognormvariate(6, 2)) for _ in range(20_000)]
    parts = [Histogram(), Histogram()]
    for i, value in enumerate(values):
        parts[i % 2].add(value)
    parts[0].merge(parts[1])
    values.sort()
    for p in (50, 90, 99, 99.9, 100):
        exact = values[max(0, -(-len(values) * p // 100).__int__() - 1)]
        assert exact <= parts[0].percentile(p) <= exact * 17 / 16 + 1
    assert parts[0].total == len(values)
    assert Histogram().percentile(99) == 0


def test_the_higher_priority_is_served_sooner_and_equals_in_order() -> None:
    admission = Admission(Refusals())
    lane, other = Lane("lane"), Lane("other", priority=1)
    for name, priority, where in (("a", 0, lane), ("b", 5, lane), ("c", 1, other), ("d", 5, other), ("e", 0, lane)):
        r = request(name)
        r.priority = priority
        admission.put(r, where)
    assert drain(admission) == ["b", "d", "c", "a", "e"]
    admission.close()


@pytest.mark.parametrize("overload", ["reject", "drop_oldest"])
def test_in_a_full_lane_the_lower_priority_makes_room(overload) -> None:
    refusals = Refusals()
    admission = Admission(refusals)
    lane = Lane("lane", 2, overload)
    for name, priority in (("low1", 0), ("low2", 0), ("high1", 9), ("high2", 9), ("low3", 0)):
        r = request(name)
        r.priority = priority
        admission.put(r, lane)
    assert drain(admission) == ["high1", "high2"]
    assert [name for name, _ in refusals.list] == ["low1", "low2", "low3"]
    admission.close()


def test_a_request_under_work_is_answered_at_its_deadline_and_only_once() -> None:
    refused: list[tuple[str, str]] = []
    event = threading.Event()

    def refuse(r: Request, code: str, message: str) -> None:
        if r.settle():
            refused.append((code, message))
            event.set()

    admission = Admission(refuse)
    admission.put(request("long", deadline_ms=50), Lane("lane"))
    taken = admission.take(1)
    assert taken is not None
    taken.ledger.stamp("queue")
    assert event.wait(5)
    assert refused == [("expired", "the deadline passed in stage 'compute_input'")]
    assert not taken.reply(b"too late", "text/plain")
    admission.close()


def test_what_was_withdrawn_is_let_go_even_if_nobody_takes() -> None:
    admission = Admission(Refusals())
    lane = Lane("lane", 10, "latest_per_source")
    for i in range(10_000):
        admission.put(request(str(i), f"camera {i % 2}", size=100), lane)
    (line,) = admission._lines.values()
    assert len(line.places) < 100
    assert drain(admission) == ["9998", "9999"]
    assert (len(admission), admission._bytes, admission._latest, admission._lines) == (0, 0, {}, {})
    admission.close()


def test_deadlines_of_what_was_answered_long_ago_take_no_room() -> None:
    admission = Admission(Refusals())
    lane = Lane("lane")
    for i in range(10_000):
        admission.put(request(str(i), deadline_ms=3_600_000), lane)
        taken = admission.take(0)
        assert taken is not None
        assert taken.settle()
    assert len(admission._deadlines._heap) <= 1024
    admission.close()


def test_of_many_refusals_few_are_logged_and_none_is_forgotten() -> None:
    now = [0.0]
    sparing = Sparing(1.0, lambda: now[0])
    assert [sparing.due("a"), sparing.due("a"), sparing.due("b", 5), sparing.due("a", 3)] == [1, 0, 5, 0]
    now[0] = 1.0
    assert [sparing.due("a"), sparing.due("a"), sparing.due("b")] == [5, 0, 1]
    now[0] = 2.0
    assert [sparing.line("a", "no"), sparing.line("a", "no"), sparing.line("c", "so")] == \
        ["no (1 more since the last that was logged)", "", "so"]  # fmt: skip
