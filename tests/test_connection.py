"""Ways to reach a broker: a password, and brokers that speak 3.1.1 only; TLS is in test_tls.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.mqtt.embedded import EmbeddedBroker
from tests.agent_process import Agent, Peer, picture, truth
from tests.broker import MOSQUITTO, Mosquitto


@pytest.mark.parametrize("right", [True, False])
def test_a_password_from_a_file(tmp_path: Path, stack, right: bool) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    subprocess.run([str(Path(MOSQUITTO).with_name("mosquitto_passwd")).replace("sbin", "bin"), "-b", "-c",
                    str(folder / "passwords"), "box1", "secret"], check=True)  # fmt: skip
    broker = Mosquitto(folder, f"password_file {folder}/passwords", anonymous=False)
    stack.callback(broker.stop)
    (tmp_path / "password").write_text("secret\n" if right else "wrong\n")
    settings = f'username = "box1"\npassword_file = "{tmp_path}/password"\n'
    agent = Agent(tmp_path, broker.port, broker=settings, wait=False)
    stack.callback(agent.kill)
    if not right:
        agent.wait_log("Not authorized")
        return
    agent.wait_log("connected over MQTT 5")
    client = Peer(broker.port, ["predictions/#"], username="box1", password="secret")
    stack.callback(client.close)
    client.send("cameras/1/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


def test_a_broker_that_speaks_3_1_1_only_is_found_out(tmp_path: Path, stack) -> None:
    broker = EmbeddedBroker()
    stack.callback(broker.stop)
    agent = Agent(tmp_path, broker.port, wait=False)
    stack.callback(agent.kill)
    agent.wait_log("connected over MQTT 3.1.1")
    client = Peer(broker.port, ["predictions/#"], v5=False)
    stack.callback(client.close)
    client.send("cameras/1/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


def test_an_agent_that_starts_before_its_broker_waits_for_it(tmp_path: Path, stack) -> None:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path / "broker")
    broker.stop()
    stack.callback(broker.stop)
    agent = Agent(tmp_path, broker.port, wait=False)
    stack.callback(agent.kill)
    agent.wait_log("no connection")
    broker.start()
    agent.wait_log("connected over MQTT 5")
