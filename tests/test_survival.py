"""What must not be lost: SIGTERM and SIGKILL under load, a broker that goes away, a repeated message."""

from __future__ import annotations

import threading
import time

from agent.client import Client
from agent.config import Broker
from tests.agent_process import picture

MESSAGES = 300


def _flood(client, count: int, gap: float) -> threading.Thread:
    def send() -> None:
        for i in range(count):
            client.client.publish(f"cameras/{i}/frame", picture(i % 40), 1)
            time.sleep(gap)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def _answered(client, count: int, timeout: float) -> dict[str, int]:
    """Replies by topic, until ``count`` topics have one."""
    found: dict[str, int] = {}
    until = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < until:
        try:
            message = client.receive(0.5)
        except Exception:  # queue.Empty: go on until the time is up
            continue
        assert b'"classes"' in message.payload
        found[message.topic] = found.get(message.topic, 0) + 1
    return found


def test_sigterm_under_load_loses_nothing(agent, peer) -> None:
    running = agent()
    client = peer("predictions/#")
    sender = _flood(client, MESSAGES, 0.002)
    time.sleep(0.25)
    assert running.terminate() == 0
    running.start()
    sender.join()
    found = _answered(client, MESSAGES, 30)
    assert len(found) == MESSAGES
    assert sum(found.values()) == MESSAGES  # a clean stop does not even answer twice


def test_sigkill_under_load_loses_nothing(agent, peer) -> None:
    running = agent()
    client = peer("predictions/#")
    sender = _flood(client, MESSAGES, 0.003)
    for _ in range(3):
        time.sleep(0.2)
        running.kill()
        running.start()
    sender.join()
    assert len(_answered(client, MESSAGES, 30)) == MESSAGES


def test_a_restarted_broker_finds_the_agent_back_and_a_retrying_sender_loses_nothing(agent, broker) -> None:
    agent()
    done: list[bytes] = []
    errors: list[BaseException] = []
    settings = Broker(port=broker.port, reconnect_min_s=0.05, reconnect_max_s=0.2)
    with Client(settings, "box1") as client:

        def work(start: int) -> None:
            try:
                for i in range(start, 100, 4):
                    done.append(client.infer("digits", picture(i % 40), "image/png", timeout=60, retry=0.5).payload)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for end in (broker.kill, broker.stop):
            time.sleep(0.05)
            end()
            time.sleep(0.3)
            broker.start()
        for thread in threads:
            thread.join(90)
    assert not errors
    assert len(done) == 100
    assert all(b'"classes"' in reply for reply in done)


def test_a_refused_request_may_be_sent_again(agent, peer) -> None:
    agent()
    client = peer("my/replies", "int8d/box1/stats")
    same = {"ResponseTopic": "my/replies", "CorrelationData": b"one"}
    client.send("cameras/1/frame", b"\x89PNG no picture", **same)
    time.sleep(0.3)  # a repetition that comes before the broker has confirmed the reply counts as answered by it
    client.send("cameras/1/frame", picture(0), **same)
    replies = []
    while len(replies) < 2:
        message = client.receive()
        if message.topic == "my/replies":
            replies.append(message.payload)
    assert b"invalid_input" in replies[0]
    assert b'"classes"' in replies[1]


def test_a_repeated_request_gets_the_same_reply_without_being_computed_again(agent, peer) -> None:
    agent()
    client = peer("my/replies", "int8d/box1/stats")
    for _ in range(3):
        client.send("cameras/1/frame", picture(0), ResponseTopic="my/replies", CorrelationData=b"one")
        time.sleep(0.2)
    replies, counters = [], {}
    until = time.monotonic() + 5
    while time.monotonic() < until and (len(replies) < 3 or counters.get("duplicates", 0) < 2):
        message = client.receive()
        if message.topic == "my/replies":
            replies.append(message.payload)
        else:
            import json

            counters = json.loads(message.payload)["counters"]
    assert len(replies) == 3
    assert len(set(replies)) == 1
    assert (counters["answered"], counters["duplicates"]) == (1, 2)
