"""`int8d acl`, at the sample broker with certificates: all that must work works, and nothing else does."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import ConfigError
from agent.mqtt.acl import Device, acl
from tests.agent_process import PICTURES, ROOT, Agent, Peer, picture, truth
from tests.broker import Mosquitto
from tests.pki import locked_broker, tls_toml

ROUTES = '[[route]]\nsubscribe = "cameras/+/frame"\nmodel = "digits"\npublish = "predictions/{1}"\n'
INFER = "int8d/{}/v2/models/digits/infer"
REPLY = "int8d/{}/clients/{}/reply"


def _int8d(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agent.cli", *map(str, args)], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[tuple[Mosquitto, Path]]:
    """The sample broker with an ACL, and box1 as a real agent there."""
    folder = tmp_path_factory.mktemp("acl")
    with ExitStack() as stack:
        broker = locked_broker(folder / "broker", pki)
        stack.callback(broker.stop)
        agent = Agent(folder, broker.port, ROUTES, broker=tls_toml(pki), wait=False)
        stack.callback(agent.kill)
        written = _int8d(
            "acl", agent.config, "--device", "box2", "--client", "client1=box1,box2", "--client", "client2=box1",
            "--sender", "camera1=cameras/1/frame", "--watcher", "watcher",
            "--operator", "operator1", "-o", folder / "broker" / "int8d.acl",
        )  # fmt: skip
        assert written.returncode == 0, written.stderr
        broker.stop()
        broker.start()
        agent.wait_log("connected over MQTT 5")
        yield broker, pki


@pytest.fixture
def join(place: tuple[Mosquitto, Path], stack: ExitStack):
    """A user's connection that has subscribed to everything."""
    broker, pki = place

    def make(user: str, **kwargs: object) -> _User:
        peer = _User(broker.port, ["#"], client_id=f"{user}-probe", ca=f"{pki}/ca.pem", cert=f"{pki}/{user}.pem",
                     key=f"{pki}/{user}.key", **kwargs)  # fmt: skip
        stack.callback(peer.close)
        return peer

    return make


class _User(Peer):
    """A peer that knows what became of its publications."""

    def may_publish(self, topic: str, payload: bytes = b"x", **properties: object) -> bool:
        bag = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(bag, name, value)
        reasons: queue.Queue[ReasonCode] = queue.Queue()
        self.client.on_publish = lambda c, u, mid, reason, p: reasons.put(reason)
        self.client.publish(topic, payload, 1, properties=bag)
        reason = reasons.get(timeout=10)
        assert reason.value in (0, 16, 135)  # success, no subscriber, not authorized
        return reason.value != 135

    def topics(self, seconds: float = 1.0) -> set[str]:
        """Of all that came."""
        time.sleep(seconds)
        found: set[str] = set()
        while not self.messages.empty():
            found.add(self.messages.get().topic)
        return found


def _options(place: tuple[Mosquitto, Path], user: str) -> tuple[object, ...]:
    broker, pki = place
    own = ("--ca", pki / "ca.pem", "--cert", pki / f"{user}.pem", "--key", pki / f"{user}.key")
    return ("--host", "localhost", "--port", broker.port, *own)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_client_is_answered(place: tuple[Mosquitto, Path], protocol: str) -> None:
    sent = _int8d("send", PICTURES / "00.png", "--model", "digits", "--device", "box1", "--client-id", "client1",
                  "--protocol", protocol, "--timeout", 10, "--json", *_options(place, "client1"))  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["classes"][0]["label"] == truth()[0]


def test_a_sender_is_answered_where_its_route_says(join) -> None:
    camera = join("camera1")
    assert camera.may_publish("cameras/1/frame", picture(0))
    reply = camera.receive()
    assert reply.topic == "predictions/1"
    assert json.loads(reply.payload)["classes"][0]["label"] == truth()[0]


def test_a_watcher_sees_the_devices(place: tuple[Mosquitto, Path]) -> None:
    seen = _int8d("watch", "--once", "--json", *_options(place, "watcher"))
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["box1"]["available"] == "online"


# What each may publish, of all the topics below; box1's are the daemon's own, which the tests above use.
TOPICS = {
    "box1's input": INFER.format("box1"),
    "box2's input": INFER.format("box2"),
    "box1's input over 3.1.1, as client1": INFER.format("box1") + "/request/client1/7",
    "box1's input over 3.1.1, as client2": INFER.format("box1") + "/request/client2/7",
    "box1's reply": INFER.format("box1") + "/response",
    "box1's reply over 3.1.1 to client1": INFER.format("box1") + "/response/client1/7",
    "box1's reply to client1": REPLY.format("box1", "client1"),
    "box1's reply to client2": REPLY.format("box1", "client2"),
    "box2's reply to client1": REPLY.format("box2", "client1"),
    "box2's reply to operator1": REPLY.format("box2", "operator1"),
    "box1 is there": "int8d/box1/available",
    "box2 is there": "int8d/box2/available",
    "box1's statistics": "int8d/box1/stats",
    "box2's statistics": "int8d/box2/stats",
    "box1's model is ready": "int8d/box1/v2/models/digits/ready",
    "where box2's update stands": "int8d/box2/v2/repository/models/digits/status",
    "a model for box1": "int8d/box1/v2/repository/models/digits/load",
    "a frame of camera 1": "cameras/1/frame",
    "a frame of camera 2": "cameras/2/frame",
    "a prediction for camera 1": "predictions/1",
    "a prediction for camera 2": "predictions/2",
    "something else": "elsewhere",
}
MAY = {
    "client1": {"box1's input", "box2's input", "box1's input over 3.1.1, as client1"},
    "client2": {"box1's input", "box1's input over 3.1.1, as client2"},
    "camera1": {"a frame of camera 1"},
    "watcher": set(),
    "operator1": {"a model for box1"},
    "box2": {
        "box2's reply to client1",
        "box2 is there",
        "box2's statistics",
        "box2's reply to operator1",
        "where box2's update stands",
    },
}


@pytest.mark.parametrize("user", MAY)
def test_what_a_user_may_publish(join, user: str) -> None:
    peer = join(user)
    assert {name for name, topic in TOPICS.items() if peer.may_publish(topic)} == MAY[user]


def test_what_each_may_read(join) -> None:
    """With everybody subscribed to everything, each gets its own."""
    users = {user: join(user) for user in MAY}
    for user in users.values():
        user.topics(0.2)  # what was retained
    for user in ("client1", "client2"):
        reply = REPLY.format("box1", user)
        assert users[user].may_publish(TOPICS["box1's input"], picture(0), ResponseTopic=reply)
        assert users[user].may_publish(f"{INFER.format('box1')}/request/{user}/9", picture(0))
    assert users["client1"].may_publish(TOPICS["box2's input"], picture(0))
    assert users["camera1"].may_publish("cameras/1/frame", picture(0))
    assert users["box2"].may_publish("int8d/box2/available", b"online")
    assert users["box2"].may_publish(REPLY.format("box2", "client1"))
    assert users["box2"].may_publish(REPLY.format("box2", "operator1"))
    assert users["box2"].may_publish(TOPICS["where box2's update stands"])
    time.sleep(1.0)
    got = {user: peer.topics(0.1) for user, peer in users.items()}
    assert got == {
        "client1": {
            REPLY.format("box1", "client1"), REPLY.format("box2", "client1"),
            f"{INFER.format('box1')}/response/client1/9", "int8d/box2/available",
        },
        "client2": {REPLY.format("box1", "client2"), f"{INFER.format('box1')}/response/client2/9"},
        "camera1": {"predictions/1"},
        "watcher": {"int8d/box1/stats", "int8d/box2/available", TOPICS["where box2's update stands"]},
        "operator1": {
            REPLY.format("box2", "operator1"), "int8d/box2/available", TOPICS["where box2's update stands"],
        },
        "box2": {TOPICS["box2's input"]},
    }  # fmt: skip


def test_over_3_1_1_a_denied_publication_vanishes(join) -> None:
    watcher = join("watcher")
    watcher.topics(0.2)
    join("client1", v5=False).client.publish("int8d/box1/available", b"forged", 1).wait_for_publish(10)
    assert "int8d/box1/available" not in watcher.topics()


def test_a_device_name_of_another_user_is_read_from_its_file(tmp_path: Path) -> None:
    text = acl([Device("box1", user="kitchen", routes=[("a/+/#", "b/{2}/{1}")])])
    assert "user kitchen\n" in text
    assert "topic read a/+/#\n" in text
    assert "topic write b/+/#\n" in text


MISTAKES = {
    "no device": ([], "no device is named"),
    "a client of no device": (["--device", "box1", "--client", "c=box9"], "no device 'box9'"),
    "half a client": (["--device", "box1", "--client", "c"], "NAME=DEVICE"),
    "a client whose name is a filter": (["--device", "box1", "--client", "a/b=box1"], "no / [+] #"),
    "a topic that no route takes": (["--device", "box1", "--sender", "c=cameras/1/frame"], "no route"),
    "a line break": (["--device", "box1\ntopic readwrite #"], "can't stand in an ACL"),
    "a device twice": (["--device", "box1", "--device", "box1"], "two devices"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, case: str, capsys) -> None:
    from agent import cli

    options, expected = MISTAKES[case]
    target = tmp_path / "acl"
    assert cli.main(["acl", *options, "-o", str(target)]) == 78
    with pytest.raises(ConfigError, match=expected):
        raise ConfigError(capsys.readouterr().err)
    assert not target.exists()
