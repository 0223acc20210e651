"""TLS with certificates made as docs/security.md says, at a broker set up as systemd/mosquitto.conf says."""

from __future__ import annotations

import queue
import re
import socket
import ssl
import threading
from pathlib import Path

import pytest

from agent.config import Broker, Tls
from agent.errors import ConfigError
from agent.mqtt import tls
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.session import Session
from tests.agent_process import Agent, Peer, picture, truth
from tests.broker import Mosquitto
from tests.pki import bash, locked_broker, tls_toml

CONNECT = bytes.fromhex("101100044d5154540502003c000004626f7831")


def _connect(port: int, files: Tls, host: str = "localhost") -> None:
    """A handshake and the broker's first byte; raises what the agent's session would see."""
    with (
        socket.create_connection((host, port), 10) as plain,
        tls.context(files).wrap_socket(plain, server_hostname=host) as secure,
    ):
        try:
            secure.sendall(CONNECT)
        except OSError as e:
            raise _last_words(secure, e) from None
        secure.recv(1)


def _last_words(sock: ssl.SSLSocket, error: OSError) -> OSError:
    """After a failed write: the alert that the broker left to be read, else ``error``."""
    try:
        sock.recv(1)
    except ssl.SSLError as alert:
        return alert
    except OSError:
        pass
    return error


def _files(folder: Path, own: str | None = "box1", ca: Path | None = None) -> Tls:
    pair = (f"{folder}/{own}.pem", f"{folder}/{own}.key") if own else (None, None)
    return Tls(ca=f"{ca or folder}/ca.pem", cert=pair[0], key=pair[1])


def test_a_client_certificate_is_served(tmp_path: Path, pki: Path, stack) -> None:
    broker = locked_broker(tmp_path / "broker", pki)
    stack.callback(broker.stop)
    agent = Agent(tmp_path, broker.port, broker=tls_toml(pki))
    stack.callback(agent.kill)
    camera = Peer(broker.port, ["predictions/#"], client_id="camera1", ca=f"{pki}/ca.pem", cert=f"{pki}/camera1.pem",
                  key=f"{pki}/camera1.key")  # fmt: skip
    stack.callback(camera.close)
    camera.send("cameras/1/frame", picture(0))
    assert camera.reply()["classes"][0]["label"] == truth()[0]
    assert agent.terminate() == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_large_messages_pass_in_both_directions_at_once(tmp_path: Path, pki: Path, stack, version: str) -> None:
    """More than a socket takes at once, with 16 under way; the replies are small, so a second client echoes."""
    broker = locked_broker(tmp_path / "broker", pki)
    stack.callback(broker.stop)
    settings = {
        name: Broker(host="localhost", port=broker.port, protocol="5", tls=Tls(
            ca=f"{pki}/ca.pem", cert=f"{pki}/{name}.pem", key=f"{pki}/{name}.key", min_version=version))
        for name in ("box1", "camera1")
    }  # fmt: skip
    got: queue.Queue[bytes] = queue.Queue()

    def echo(message: Incoming) -> None:
        box.publish(Outgoing("back", message.payload))
        box.done(message)

    def take(message: Incoming) -> None:
        got.put(message.payload)
        camera.done(message)

    box = Session(settings["box1"], "box1", [("there", 1)], echo, clean=True)
    camera = Session(settings["camera1"], "camera1", [("back", 1)], take, clean=True)
    for session in (box, camera):
        session.start()
        stack.callback(session.stop)
        assert session.wait_ready(10), session.refusal
    sent = [bytes([i]) * (1_000_000 + i) for i in range(24)]
    for payload in sent:
        camera.publish(Outgoing("there", payload))
    assert [got.get(timeout=30) for _ in sent] == sent


REFUSED = {
    "no certificate": (lambda p: _files(p, None), "broker", "wants a client certificate|want of a client certificate"),
    "a certificate of another authority": (lambda p: _files(p / "other", ca=p), "broker", "broker.tls.cert and key"),
    "our certificate expired": (lambda p: _files(p, "latebox"), "broker", "make a new one for broker.tls.cert"),
    "a broker of another authority": (lambda p: _files(p, ca=p / "other"), "broker", "set broker.tls.ca"),
    "the broker's certificate expired": (_files, "late", "renew it on the broker"),
    "the broker has another name": (_files, "elsewhere", "set broker.host"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_is_refused_is_told_what_to_do(tmp_path: Path, pki: Path, stack, case: str) -> None:
    files, certificate, expected = REFUSED[case]
    broker = locked_broker(tmp_path / "broker", pki, certificate)
    stack.callback(broker.stop)
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        _connect(broker.port, files(pki))
    assert re.search(expected, tls.explain(caught.value)), tls.explain(caught.value)


@pytest.mark.parametrize(
    ("own", "certificate", "expected"),
    [
        ("box1", "late", "renew it on the broker"),
        ("box1", "elsewhere", "set broker.host"),
        (None, "broker", "the broker wants a client certificate"),
        ("latebox", "broker", "make a new one for broker.tls.cert"),
    ],
)
def test_the_daemon_logs_what_to_do_and_does_not_connect(
    tmp_path: Path, pki: Path, stack, own: str | None, certificate: str, expected: str
) -> None:
    broker = locked_broker(tmp_path / "broker", pki, certificate)
    stack.callback(broker.stop)
    agent = Agent(tmp_path, broker.port, broker=tls_toml(pki, own), wait=False)
    stack.callback(agent.kill)
    agent.wait_log(expected)
    assert "connected over" not in agent.log()
    assert agent.terminate() == 0


def _old_context(pki: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(pki / "broker.pem", pki / "broker.key")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_1_1_is_refused_by_the_agent(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                _old_context(pki).wrap_socket(server.accept()[0], server_side=True)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ssl.SSLError) as caught:
            _connect(server.getsockname()[1], _files(pki))
        thread.join()
    assert "no version of TLS" in tls.explain(caught.value)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_1_1_is_refused_by_thelocked_broker(tmp_path: Path, pki: Path, stack) -> None:
    broker = locked_broker(tmp_path / "broker", pki)
    stack.callback(broker.stop)
    context = ssl.create_default_context(cafile=f"{pki}/ca.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(pki / "box1.pem", pki / "box1.key")
    with (
        socket.create_connection(("127.0.0.1", broker.port)) as plain,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_port_without_tls_is_named(broker: Mosquitto, pki: Path) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        _connect(broker.port, _files(pki))
    assert "speak TLS on this port" in tls.explain(caught.value)


def test_the_recipes_certificates_pass_the_strict_rules_of_newer_pythons(tmp_path: Path, pki: Path, stack) -> None:
    broker = locked_broker(tmp_path / "broker", pki)
    stack.callback(broker.stop)
    context = tls.context(_files(pki))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    with socket.create_connection(("127.0.0.1", broker.port)) as plain:
        assert context.wrap_socket(plain, server_hostname="localhost").version() == "TLSv1.3"


def _encrypted(pki: Path, folder: Path) -> Tls:
    bash(f"openssl ec -in {pki}/box1.key -aes128 -passout pass:secret -out locked.key", folder)
    return Tls(ca=f"{pki}/ca.pem", cert=f"{pki}/box1.pem", key=f"{folder}/locked.key")


BAD_FILES = {
    "no file": (lambda p, t: Tls(ca=f"{p}/none.pem"), "ca '.*none.pem' can't be read"),
    "a key in ca": (lambda p, t: Tls(ca=f"{p}/box1.key"), "holds no certificate"),
    "the key of another": (
        lambda p, t: Tls(ca=f"{p}/ca.pem", cert=f"{p}/box1.pem", key=f"{p}/camera1.key"),
        "do not belong together",
    ),
    "cert and key swapped": (
        lambda p, t: Tls(ca=f"{p}/ca.pem", cert=f"{p}/box1.key", key=f"{p}/box1.pem"),
        "are not a certificate and a private key",
    ),
    "a key with a passphrase": (_encrypted, "passphrase"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_cannot_be_used_are_named(pki: Path, tmp_path: Path, case: str) -> None:
    make, expected = BAD_FILES[case]
    with pytest.raises(ConfigError, match=expected):
        tls.context(make(pki, tmp_path))


def test_tls_1_3_alone_may_be_asked_for(pki: Path) -> None:
    assert tls.context(Tls(ca=f"{pki}/ca.pem", min_version="1.3")).minimum_version == ssl.TLSVersion.TLSv1_3
    assert tls.context(Tls(ca=f"{pki}/ca.pem")).minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_daemon_ends_with_78_for_files_that_do_not_belong_together(tmp_path: Path, pki: Path) -> None:
    broker = f'[broker.tls]\nca = "{pki}/ca.pem"\ncert = "{pki}/box1.pem"\nkey = "{pki}/camera1.key"\n'
    agent = Agent(tmp_path, 1, broker=broker, wait=False)
    assert agent.process.wait(60) == 78
    assert "do not belong together" in agent.log()
