"""Predictions of a route with an outbox: what a broker that forgets and an agent that dies leave of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from tests.agent_process import ROUTE, Agent, Peer, picture
from tests.broker import Mosquitto

COUNT = 120


class Planted(Agent):
    module = "tests.planted"


@pytest.fixture
def forgetful(tmp_path: Path, stack) -> Mosquitto:
    """A broker that keeps nothing over a kill."""
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path / "broker", "max_inflight_messages 1000")
    config = tmp_path / "broker" / "mosquitto.conf"
    broker.stop()
    config.write_text(config.read_text().replace("persistence true", "persistence false"))
    broker.start()
    stack.callback(broker.stop)
    return broker


@pytest.fixture
def agent(tmp_path: Path, forgetful: Mosquitto, stack):
    def make(outbox: str = "") -> Planted:
        route = ROUTE + "outbox = true\n" + f"[outbox]\n{outbox}\n"
        agent = Planted(tmp_path, forgetful.port, route, "receive_maximum = 1000")
        stack.callback(agent.kill)
        return agent

    return make


def _store(folder: Path) -> Path:
    return folder / "state" / "box1" / "outbox.db"


def _wait(holds, timeout: float = 30) -> None:
    until = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < until, "did not come about"
        time.sleep(0.01)


def _peer(broker: Mosquitto, stack, *topics: str) -> Peer:
    peer = Peer(broker.port, list(topics))
    peer.client.reconnect_delay_set(1, 1)
    stack.callback(peer.close)
    return peer


def _collect(peer: Peer, count: int, timeout: float = 40) -> list[paho.MQTTMessage]:
    found: list[paho.MQTTMessage] = []
    while len(found) < count:
        message = peer.receive(timeout)
        if message.topic.startswith("predictions/") and b'"classes"' in message.payload:
            found.append(message)
    return found


def _burst(broker: Mosquitto, stack, agent: Planted) -> Peer:
    """The agent has got it all, but is busy with the first for a while."""
    peer = _peer(broker, stack, "predictions/#", "int8d/box1/stats")
    peer.client.publish("cameras/0/frame", b"PLANT sleep 1.5", 1)
    for i in range(1, COUNT + 1):
        peer.client.publish(f"cameras/{i}/frame", picture(i % 40), 1)
    while True:
        message = peer.receive()
        if message.topic.endswith("stats") and json.loads(message.payload)["counters"]["received"] == COUNT + 1:
            return peer


def _replays(messages: list[paho.MQTTMessage]) -> list[bool]:
    marks = [dict(getattr(m.properties, "UserProperty", ())) for m in messages]
    assert all(int(mark["stored_at"]) > 1e15 for mark in marks if mark)
    return [mark.get("replay") == "true" for mark in marks]


def _in_order(messages: list[paho.MQTTMessage]) -> bool:
    """Each one's first time."""
    return list(dict.fromkeys(m.topic for m in messages)) == [f"predictions/{i}" for i in range(1, COUNT + 1)]


def test_predictions_survive_a_broker_that_is_away_and_forgets(agent, forgetful, stack) -> None:
    running = agent()
    peer = _burst(forgetful, stack, running)
    forgetful.kill()
    time.sleep(5)
    forgetful.start()
    found = _collect(peer, COUNT)
    assert _in_order(found)
    assert all(_replays(found))


def test_predictions_survive_the_agent_and_the_broker(agent, forgetful, stack, tmp_path) -> None:
    running = agent()
    peer = _burst(forgetful, stack, running)
    forgetful.kill()
    stored = b""

    def all_are_stored() -> bool:
        nonlocal stored
        stored = b"".join(f.read_bytes() for f in _store(tmp_path).parent.glob("outbox.db*"))
        return all(b"predictions/%d" % i in stored for i in range(1, COUNT + 1))

    _wait(all_are_stored)
    running.kill()
    forgetful.start()
    running.start()
    found = _collect(peer, COUNT)
    assert _in_order(found)
    assert all(_replays(found))
    assert running.terminate() == 0


def test_with_a_broker_nothing_is_marked_and_a_clean_stop_answers_once(agent, forgetful, stack) -> None:
    running = agent()
    peer = _peer(forgetful, stack, "predictions/#")
    for i in range(1, COUNT + 1):
        peer.client.publish(f"cameras/{i}/frame", picture(i % 40), 1)
        time.sleep(0.001)
        if i == COUNT // 2:
            assert running.terminate() == 0
            running.start()
    found = _collect(peer, COUNT)
    assert _in_order(found)
    assert len({m.topic for m in found}) == len(found)


def test_a_damaged_outbox_is_moved_aside_and_the_agent_serves(agent, forgetful, stack, tmp_path) -> None:
    _store(tmp_path).parent.mkdir(parents=True)
    _store(tmp_path).write_bytes(b"damaged " * 1000)
    running = agent()
    peer = _peer(forgetful, stack, "predictions/#", "int8d/box1/stats")
    peer.client.publish("cameras/1/frame", picture(0), 1)
    assert len(_collect(peer, 1)) == 1
    assert "damaged" in running.log()
    message = peer.receive()
    while not message.topic.endswith("stats"):
        message = peer.receive()
    assert json.loads(message.payload)["outbox"]["corrupt"] == 1
    assert _store(tmp_path).with_name("outbox.db.corrupt").read_bytes() == b"damaged " * 1000
