"""From a message to its acknowledgement, on a session that only writes down what it is told."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from agent.mqtt.delivery import Delivery, Route
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.routes import Filter
from agent.serving.admission import Admission
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.telemetry.stats import Stats
from agent.wire import oip


class FakeSession:
    def __init__(self) -> None:
        self.published: list[tuple[Outgoing, Callable[[str | None], None]]] = []
        self.acknowledged: list[Incoming] = []

    def publish(self, message: Outgoing, confirmed: Callable[[str | None], None], expires: float | None = None) -> None:
        self.published.append((message, confirmed))

    def done(self, message: Incoming) -> None:
        self.acknowledged.append(message)


class House:
    """A delivery whose requests are served by hand."""

    def __init__(self, reply_cache: int = 4, cache_bytes: int = 1000) -> None:
        self.session, self.stats = FakeSession(), Stats({})
        self.admission = Admission(self.refuse)
        routes = [Route(Filter(f"{name}/#"), "m", "out/{1}", Lane(name)) for name in ("in", "deep")]
        self.delivery = Delivery(routes, self.admission, self.stats, self.refuse, reply_cache, cache_bytes)
        self.delivery.attach(self.session)  # type: ignore[arg-type]
        self._mid = 0

    def refuse(self, request: Request, code: str, message: str) -> None:
        if not request.settle():
            return
        request.refusal = code
        request.answer(oip.error(code, message), "application/json", request)

    def arrive(self, payload: bytes, correlation: bytes | None = None, mid: int | None = None, qos: int = 1,
               duplicate: bool = False, topic: str = "in/1",
               response_topic: str | None = None) -> Incoming:  # fmt: skip
        self._mid += 1
        message = Incoming(topic, payload, qos, mid or self._mid, duplicate, 1, response_topic, correlation)
        self.delivery.receive(message)
        return message

    def serve(self, reply: bytes = b"reply") -> bytes | None:
        """Answers the next request; its payload, or None where nothing waits."""
        request = self.admission.take(0)
        if request is None:
            return None
        request.reply(reply, "application/json")
        return request.payload

    def confirm(self, reason: str | None = None) -> Outgoing:
        message, confirmed = self.session.published.pop(0)
        confirmed(reason)
        return message


@pytest.fixture
def house():
    made: list[House] = []

    def make(**kwargs: int) -> House:
        made.append(House(**kwargs))
        return made[-1]

    yield make
    for h in made:
        h.admission.close()


def test_the_input_is_acknowledged_only_once_the_reply_is_confirmed(house) -> None:
    h = house()
    message = h.arrive(b"a")
    assert h.serve() == b"a"
    assert h.session.acknowledged == []
    assert h.confirm().topic == "out/1"
    assert h.session.acknowledged == [message]


def test_different_inputs_under_one_correlation_are_each_served(house) -> None:
    h = house()
    for payload in (b"a", b"b"):
        h.arrive(payload, b"camera 7")
    assert [h.serve(), h.serve()] == [b"a", b"b"]
    h.confirm(), h.confirm()
    h.arrive(b"c", b"camera 7")
    assert h.serve() == b"c"
    assert len(h.session.acknowledged) == 2


@pytest.mark.parametrize("under_way", [True, False])
def test_a_repeated_input_is_computed_once_and_all_copies_are_acknowledged(house, under_way: bool) -> None:
    h = house()
    first = h.arrive(b"a", b"id")
    again = h.arrive(b"a", b"id") if under_way else None
    assert h.serve(b"one reply") == b"a"
    h.confirm()
    if again is None:
        again = h.arrive(b"a", b"id")
        assert h.confirm().payload == b"one reply"
    assert h.serve() is None
    assert h.session.acknowledged == [first, again]
    assert h.stats.counters["duplicates"] == 1


def test_ids_of_the_broker_count_only_where_it_says_repeated(house) -> None:
    h = house()
    h.arrive(b"a", mid=5)
    h.serve()
    h.confirm()
    h.arrive(b"a", mid=5, duplicate=True)
    assert h.serve() is None
    h.confirm()
    h.arrive(b"a", mid=5)
    assert h.serve() == b"a"


def test_a_reply_that_the_broker_does_not_take_becomes_an_error_and_blocks_nothing(house) -> None:
    h = house()
    message = h.arrive(b"a", b"id")
    h.serve(b"x" * 100)
    h.confirm("Packet too large")
    assert h.session.acknowledged == []
    error = json.loads(h.confirm().payload)["error"]
    assert error["code"] == "undeliverable"
    assert "Packet too large" in error["message"]
    assert h.session.acknowledged == [message]
    h.arrive(b"a", b"id")
    assert h.serve() == b"a"  # not answered from the cache


def test_the_error_in_place_of_a_reply_goes_to_the_routes_own_topic(house) -> None:
    h = house()
    h.arrive(b"a", response_topic="mine")
    h.serve()
    assert h.confirm("it ends the connection over it").topic == "mine"
    error = h.confirm()
    assert error.topic == "out/1"
    assert json.loads(error.payload)["error"]["code"] == "undeliverable"


def test_a_message_whose_reply_would_end_the_connection_is_not_served(house) -> None:
    h = house()
    message = h.arrive(b"a", topic="deep/" + "x/" * 150)
    assert h.serve() is None
    assert h.session.acknowledged == [message]
    assert h.stats.counters["publish_failed"] == 1
    h.arrive(b"a", topic="deep/" + "x/" * 100)
    assert h.serve() == b"a"


def test_where_not_even_the_error_is_taken_the_input_is_acknowledged_and_counted(house) -> None:
    h = house()
    message = h.arrive(b"a")
    h.serve()
    h.confirm("Not authorized")
    h.confirm("Not authorized")
    assert h.session.acknowledged == [message]
    assert h.session.published == []
    assert (h.stats.counters["publish_failed"], h.stats.counters["answered"]) == (1, 0)


@pytest.mark.parametrize(("kept", "sizes", "bounds"), [
    (2, [10, 10, 10], {"reply_cache": 2}),
    (3, [300, 300, 300, 300], {"reply_cache": 9}),
    (0, [1001], {}),
    (0, [10], {"reply_cache": 0}),
])  # fmt: skip
def test_the_cache_is_bounded_in_replies_and_in_bytes(house, kept: int, sizes: list[int], bounds) -> None:
    h = house(**bounds)
    for i, size in enumerate(sizes):
        h.arrive(bytes([i]), b"id")
        h.serve(bytes(size))
        h.confirm()
    served = 0
    for i in reversed(range(len(sizes))):  # the newest first: what is computed again pushes out no one before its turn
        if i < len(sizes) - kept:
            break
        h.arrive(bytes([i]), b"id")
        served += h.serve() is not None
        h.confirm()
    assert served == 0
    if kept < len(sizes):
        h.arrive(bytes([len(sizes) - kept - 1]), b"id")
        assert h.serve() is not None


def test_what_came_at_qos_0_takes_no_room_in_the_cache(house) -> None:
    h = house(reply_cache=1)
    h.arrive(b"a", b"id")
    h.serve()
    h.confirm()
    h.arrive(b"b", qos=0)
    h.serve()
    h.confirm()
    h.arrive(b"a", b"id")
    assert h.serve() is None


def test_while_draining_nothing_is_taken_or_acknowledged(house) -> None:
    h = house()
    h.delivery.draining = True
    h.arrive(b"a")
    assert h.serve() is None
    assert h.session.acknowledged == []
