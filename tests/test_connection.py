"""Ways to reach a broker: TLS, a password, and brokers that speak 3.1.1 only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.mqtt.embedded import EmbeddedBroker
from tests.agent_process import Agent, Peer, picture, truth
from tests.broker import MOSQUITTO, Mosquitto


def _openssl(*args: object, cwd: Path) -> None:
    subprocess.run(["openssl", *map(str, args)], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A private CA, and certificates for the broker (localhost) and the agent."""
    folder = tmp_path / "pki"
    folder.mkdir()
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", 2, cwd=folder)
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "box1"):
        _openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=folder)
        _openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                 "-out", f"{name}.pem", "-days", 2, "-extfile", "san", cwd=folder)  # fmt: skip
    return folder


def test_tls_with_client_certificates(tmp_path: Path, authority: Path, stack) -> None:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(
        tmp_path / "broker",
        f"cafile {authority}/ca.pem\ncertfile {authority}/server.pem\nkeyfile {authority}/server.key\n"
        "require_certificate true\n",
    )
    stack.callback(broker.stop)
    tls = f'\n[broker.tls]\nca = "{authority}/ca.pem"\ncert = "{authority}/box1.pem"\nkey = "{authority}/box1.key"\n'
    agent = Agent(tmp_path, broker.port, broker=tls)
    stack.callback(agent.kill)
    client = Peer(broker.port, ["predictions/#"], ca=f"{authority}/ca.pem", cert=f"{authority}/box1.pem",
                  key=f"{authority}/box1.key")  # fmt: skip
    stack.callback(client.close)
    client.send("cameras/1/frame", picture(0))
    assert client.reply()["classes"][0]["label"] == truth()[0]


def test_a_broker_of_another_authority_is_not_talked_to(tmp_path: Path, authority: Path, stack) -> None:
    (tmp_path / "broker").mkdir()
    pem = f"certfile {authority}/server.pem\nkeyfile {authority}/server.key\n"
    broker = Mosquitto(tmp_path / "broker", pem)
    stack.callback(broker.stop)
    agent = Agent(tmp_path, broker.port, broker="[broker.tls]\n", wait=False)
    stack.callback(agent.kill)
    agent.wait_log("CERTIFICATE_VERIFY_FAILED")
    assert "connected over" not in agent.log()
    assert agent.terminate() == 0


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
