"""The sender that retries until it is answered: its window, its retries, its errors, and what it does not lose."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future

import pytest

from agent import client as module
from agent.client import Client, Closed, NoAnswer, Refused, Reply, WindowFull
from agent.config import Broker
from agent.errors import InputError, Int8dError
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.session import Session
from agent.spool import SpoolFull
from agent.telemetry.stats import resident_bytes
from tests.agent_process import PICTURES, picture, truth
from tests.lossy import LossyProxy
from tests.responder import REPLY, Responder, refusal

PROTOCOLS = ["5", "3.1.1"]


@pytest.fixture
def responder(broker, stack):
    def make(*args) -> Responder:
        responder = Responder(broker.port, *args)
        stack.callback(responder.close)
        return responder

    return make


@pytest.fixture
def client(broker, stack):
    def make(protocol: str = "auto", **options) -> Client:
        settings = Broker(port=broker.port, protocol=protocol, reconnect_min_s=0.05, reconnect_max_s=0.2)
        client = stack.enter_context(Client(settings, "box1", **options))
        client.wait_connected(10)
        return client

    return make


def _wait(holds, timeout: float = 10) -> None:
    until = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < until, "did not come about"
        time.sleep(0.005)


def test_the_example_of_the_docstring_runs(agent, broker, tmp_path, monkeypatch, capsys) -> None:
    agent()
    example = re.search(r"\n\n((?:    .*\n|\n)+)", module.__doc__)[1]
    (tmp_path / "7.png").write_bytes((PICTURES / "00.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    code = "\n".join(line[4:] for line in example.splitlines())
    exec(code.replace('host="127.0.0.1"', f'host="127.0.0.1", port={broker.port}'), {})
    label, took = capsys.readouterr().out.splitlines()
    assert label == truth()[0]
    assert re.fullmatch(r"\d+\.\d+ ms", took)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_are_under_way_and_each_gets_its_own_answer(client, responder, protocol: str) -> None:
    responder(lambda payload, n: b'{"echo": "%s"}' % payload)
    sender = client(protocol)
    futures = [sender.submit("m", b"%d" % i) for i in range(200)]
    assert [f.result(10).document["echo"] for f in futures] == [str(i) for i in range(200)]
    assert sender.protocol == protocol


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_sends_again_under_the_same_name(client, responder, protocol: str) -> None:
    agent = responder(lambda payload, n: REPLY if n == 3 else None)
    reply = client(protocol).infer("m", b"x", "image/png", retry=0.05, request_id="one")
    assert (reply.payload, reply.id) == (REPLY, "one")
    assert agent.came("one") >= reply.attempts - 1 >= 3  # one more may be on its way
    assert len({(m.topic, bytes(m.payload)) for m in agent.copies["one"]}) == 1


def test_it_sends_ever_more_rarely(client, responder) -> None:
    agent = responder(lambda payload, n: None)
    with pytest.raises(NoAnswer):
        client().infer("m", b"x", timeout=1.2, retry=0.05, request_id="one")
    assert agent.came("one") <= 7  # 0, 0.05, 0.15, 0.35, 0.75 s; every 0.05 s they would be 24


def test_an_answer_is_waited_for_no_longer_than_the_timeout_and_the_broker_is_told(client, responder) -> None:
    agent = responder(lambda payload, n: None)
    with pytest.raises(NoAnswer, match="does it run"):
        client().infer("m", b"x", timeout=1.2, retry=0.4, request_id="one")
    told = [(m.properties.MessageExpiryInterval, int(dict(m.properties.UserProperty)["timeout_us"]))
            for m in agent.copies["one"]]  # fmt: skip
    assert all(us <= seconds * 1e6 for seconds, us in told)
    assert told == sorted(told, reverse=True)
    assert 0 < told[0][1] <= 1_200_000


def test_without_a_connection_the_error_says_so(stack) -> None:
    sender = stack.enter_context(Client(Broker(port=1), "box1"))
    with pytest.raises(NoAnswer, match="no connection"):
        sender.infer("m", b"x", timeout=0.1)


def test_what_is_submitted_before_there_is_a_broker_is_sent_when_there_is(broker, responder, stack) -> None:
    broker.stop()
    settings = Broker(port=broker.port, reconnect_min_s=0.05, reconnect_max_s=0.1)
    sender = stack.enter_context(Client(settings, "box1"))
    futures = [sender.submit("m", b"x", retry=0.3) for _ in range(3)]
    broker.start()
    responder()
    assert [f.result(10).payload for f in futures] == [REPLY] * 3


def test_after_a_new_connection_it_does_not_wait_as_long_as_before(client, responder, broker) -> None:
    agent = responder(lambda payload, n: None)
    sender = client()
    future = sender.submit("m", b"x", retry=0.05, timeout=None, request_id="one")
    _wait(lambda: agent.came("one"))
    sender._calls["one"].delay = 1000.0
    came = agent.came("one")
    _wait(lambda: agent.came("one") > came)
    broker.stop()
    first_since = agent.came("one")  # it may come before the responder is back
    agent.answer = lambda payload, n: REPLY if n > first_since else None
    broker.start()
    assert future.result(20).payload == REPLY


@pytest.mark.parametrize("code", ["poisoned", "invalid_input", "expired"])
def test_a_refusal_is_an_error_and_is_not_sent_again(client, responder, code: str) -> None:
    agent = responder(lambda payload, n: refusal(code))
    sender = client(retry_refused=True)
    with pytest.raises(Refused, match="planted") as caught:
        sender.infer("m", b"x", request_id="one")
    assert caught.value.code == code
    assert caught.value.reply == refusal(code)
    assert agent.came("one") == 1
    assert not sender._calls


def test_an_overloaded_agent_is_asked_again_where_the_sender_wants_it(client, responder) -> None:
    agent = responder(lambda payload, n: refusal("overloaded") if n < 2 else REPLY)
    with pytest.raises(Refused, match="overloaded"):
        client().infer("m", b"x", request_id="one")
    patient = client(retry_refused=True)
    assert patient.infer("m", b"x", retry=0.05, request_id="two").attempts >= 3
    agent.answer = lambda payload, n: refusal("overloaded")
    with pytest.raises(Refused, match="overloaded"):
        patient.infer("m", b"x", timeout=0.3, retry=0.05, request_id="three")
    assert agent.came("three") > 1


def test_the_window_is_bounded_and_pushes_back(client, responder) -> None:
    agent = responder(lambda payload, n: None)
    sender = client(max_in_flight=3)
    futures = [sender.submit("m", b"x", request_id=str(i)) for i in range(3)]
    for block in (False, True):
        with pytest.raises(WindowFull, match="max_in_flight"):
            sender.submit("m", b"x", timeout=0.1, block=block)
    waiting: Future[Future[Reply]] = Future()
    thread = threading.Thread(target=lambda: waiting.set_result(sender.submit("m", b"x", request_id="3")))
    thread.start()
    _wait(lambda: agent.came("2"))
    assert not waiting.done()
    agent.reply_to(agent.copies["1"][0], REPLY)
    assert futures[1].result(10).payload == REPLY
    waiting.result(10)
    thread.join()
    _wait(lambda: agent.came("3"))
    assert not futures[0].done()


def test_a_cancelled_message_frees_its_place(client, responder) -> None:
    responder(lambda payload, n: None if payload == b"never" else REPLY)
    sender = client(max_in_flight=1)
    assert sender.submit("m", b"never").cancel()
    assert sender.infer("m", b"x", timeout=10).payload == REPLY


def test_stopping_ends_what_waits_with_an_error(broker, responder) -> None:
    responder(lambda payload, n: None)
    with Client(Broker(port=broker.port), "box1", max_in_flight=1) as sender:
        future = sender.submit("m", b"x", timeout=None)
        errors: list[Exception] = []

        def blocked() -> None:
            try:
                sender.submit("m", b"x", timeout=None)
            except Closed as e:
                errors.append(e)

        thread = threading.Thread(target=blocked)
        thread.start()
        time.sleep(0.05)
    thread.join(10)
    assert len(errors) == 1
    with pytest.raises(Closed):
        future.result(0)
    with pytest.raises(Closed):
        sender.submit("m", b"x")


def test_a_callback_that_fails_or_submits_harms_nothing(client, responder) -> None:
    responder()
    sender = client(max_in_flight=2)
    chained: list[object] = []

    def ends_the_thread(future: Future[Reply]) -> None:
        raise SystemExit

    def goes_on(future: Future[Reply]) -> None:
        chained.append(sender.submit("m", b"next"))
        chained.append(sender.submit("m", b"next"))  # the window is full, and nobody could make room meanwhile
        raise AssertionError("not reached")

    def waits(future: Future[Reply]) -> None:
        try:
            sender.infer("m", b"x")
        except Int8dError as e:
            chained.append(e)

    sender.submit("m", b"x").add_done_callback(ends_the_thread)
    sender.infer("m", b"x", timeout=10)
    keep = [sender.submit("m", b"x"), sender.submit("m", b"x")]
    keep[0].add_done_callback(waits)
    keep[0].result(10), keep[1].result(10)
    _wait(lambda: chained)
    assert "callback" in str(chained.pop())
    sender.submit("m", b"x").add_done_callback(goes_on)
    _wait(lambda: chained)
    assert chained[0].result(10).payload == REPLY
    assert sender.infer("m", b"x", timeout=10).payload == REPLY


@pytest.mark.parametrize("name", ["", "a/b", "a+", "x" * 129])
def test_a_name_that_can_not_travel_is_refused(client, name: str) -> None:
    with pytest.raises(InputError, match="request_id"):
        client().submit("m", b"x", request_id=name)


def test_a_name_is_under_way_once(client) -> None:
    sender = client()
    sender.submit("m", b"x", request_id="one")
    with pytest.raises(InputError, match="under way"):
        sender.submit("m", b"x", request_id="one")


def test_replies_that_nobody_waits_for_are_let_go(client, responder) -> None:
    agent = responder(lambda payload, n: None)
    sender = client()
    with pytest.raises(NoAnswer):
        sender.infer("m", b"x", timeout=0.2, request_id="one")
    agent.reply_to(agent.copies["one"][0], REPLY)
    agent.answer = lambda payload, n: REPLY
    assert sender.infer("m", b"x", timeout=10).payload == REPLY


def test_over_a_net_that_loses_a_fifth_each_way_every_message_is_answered(agent, broker, stack) -> None:
    agent()
    proxy = LossyProxy(broker.port, loss=0.2, hang_up=0.01)
    stack.callback(proxy.close)
    settings = Broker(port=proxy.port, protocol="5", reconnect_min_s=0.02, reconnect_max_s=0.1)
    with Client(settings, "box1", max_in_flight=32, retry_max=0.3) as sender:
        futures = [sender.submit("digits", picture(i % 40), "image/png", 120, retry=0.1) for i in range(400)]
        labels = [f.result().document["classes"][0]["label"] for f in futures]
    right = [a == b for a, b in zip(labels, truth() * 10, strict=True)]
    assert sum(right) >= 0.95 * 400  # the model's own share; an answer to another's picture would be a tenth
    assert min(proxy.lost.values()) > 40
    assert proxy.ended > 0
    assert max(f.result().attempts for f in futures) > 2


def test_spooled_messages_outlive_the_client_and_leave_when_they_are_answered(client, responder, tmp_path) -> None:
    agent = responder(lambda payload, n: REPLY if payload == b"quick" else None)
    spool = tmp_path / "spool.db"
    first = client("5", spool=spool)
    assert first.submit("m", b"quick", request_id="quick").result(10).payload == REPLY
    for i in range(3):
        first.submit("m", b"%d" % i, "image/png", request_id=f"slow {i}")
    cancelled = first.submit("m", b"never", request_id="never")
    assert cancelled.cancel()
    with pytest.raises(NoAnswer):
        first.infer("m", b"3", timeout=1, request_id="slow 3")
    first.stop()
    seen = {name: copies[0] for name, copies in agent.copies.items()}
    agent.copies.clear()
    agent.answer = lambda payload, n: REPLY
    second = client("5", spool=spool)
    replies = [f.result(10) for f in second.resume()]
    assert [r.id for r in replies] == [f"slow {i}" for i in range(4)]
    assert set(agent.copies) == {r.id for r in replies}
    for name, copies in agent.copies.items():
        again, before = copies[0], seen[name]
        assert (again.topic, again.payload) == (before.topic, before.payload)
        for key in ("ResponseTopic", "CorrelationData"):
            assert getattr(again.properties, key) == getattr(before.properties, key)
    assert agent.copies["slow 0"][0].properties.ContentType == "image/png"
    assert second.resume() == []


def test_a_spool_has_one_owner_and_a_bound(client, tmp_path) -> None:
    sender = client(spool=tmp_path / "spool.db", spool_bytes=10_000)
    with pytest.raises(Int8dError, match="another process"):
        client(spool=tmp_path / "spool.db")
    sender.submit("m", bytes(6000))
    with pytest.raises(SpoolFull, match="not sent"):
        sender.submit("m", bytes(6000), request_id="one")
    sender.submit("m", b"small", request_id="one")


_SENDER = """
import sys
from agent.client import Client
from agent.config import Broker
port, spool, start = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Client(Broker(port=port), "box1", spool=spool, max_in_flight=1000) as client:
    for i in range(start, start + 100_000):
        client.submit("m", b"%d" % i, timeout=None, request_id=str(i))
        print(i, flush=True)
"""


def test_a_killed_sender_sends_the_rest_after_its_restart(broker, responder, client, tmp_path) -> None:
    answered: set[str] = set()
    agent = responder(lambda payload, n: answered.add(payload.decode()) or REPLY if int(payload) % 3 else None)
    submitted: list[str] = []
    for life in range(3):
        child = subprocess.Popen([sys.executable, "-c", _SENDER, str(broker.port), tmp_path / "spool.db",
                                  str(life * 100_000)], stdout=subprocess.PIPE)  # fmt: skip
        submitted += [child.stdout.readline() for _ in range(50)]
        child.kill()
        submitted += child.stdout.readlines()
        child.wait()
    names = {line.decode().strip() for line in submitted if line.endswith(b"\n")}
    agent.answer = lambda payload, n: answered.add(payload.decode()) or REPLY
    sender = client(spool=tmp_path / "spool.db", max_in_flight=100)
    for future in sender.resume():
        assert future.result(30).payload == REPLY
    assert names <= answered
    assert len(names) >= 150


def test_memory_does_not_grow_over_thousands_of_calls(client, broker, stack) -> None:
    def answer(message: Incoming) -> None:
        reply = Outgoing(message.response_topic, b"{}", correlation=message.correlation)
        agent.publish(reply, lambda reason: agent.done(message))

    agent = Session(Broker(port=broker.port), "agent", [("int8d/box1/v2/models/m/infer", 1)], answer, clean=True)
    stack.callback(agent.stop)
    agent.start()
    assert agent.wait_ready(10)
    sender = client()

    def send(count: int) -> tuple[int, int]:
        waiting: deque[Future[Reply]] = deque()
        for _ in range(count):
            waiting.append(sender.submit("m", bytes(4000), timeout=None))
            if len(waiting) > 50:
                assert waiting.popleft().result(30).payload == b"{}"
        for future in waiting:
            future.result(30)
        waiting.clear()
        return resident_bytes(), len(gc.get_objects())

    memory, objects = send(2000)
    memory_after, objects_after = send(6000)
    assert objects_after - objects < 1000
    assert memory_after - memory < 8 << 20  # 6,000 payloads are 24 MB
