"""The daemon gets its releases through a real web server over TLS, and through a locked broker alone."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import ROOT, ROUTE, Agent, Peer, picture, truth
from tests.broker import Mosquitto
from tests.nginx import Nginx
from tests.pki import locked_broker, tls_toml
from tests.repository import Repo, make
from tests.repository_server import TOPIC, Served
from tests.updates.device import LOAD, STATUS
from tests.variants import variant

REPLY = "int8d/box1/clients/operator1/reply"
QUICK = "[tuner]\nenabled = false\n[updates]\nshadow_s = 0.1\nprobation_s = 0.3\nmin_free_bytes = 1\n"
Fits = Callable[[dict[str, Any]], bool]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    repo = make(tmp_path / "publisher")
    repo.publish(variant(tmp_path, 1), 1)
    return repo


def _of_pki(pki: Path, user: str) -> dict[str, str]:
    return {"ca": f"{pki}/ca.pem", "cert": f"{pki}/{user}.pem", "key": f"{pki}/{user}.key"}


def _until(peer: Peer, fits: Fits, timeout: float = 30, topic: str = STATUS) -> dict[str, Any]:
    """The next message of the topic that fits."""
    until = time.monotonic() + timeout
    last: object = "nothing"
    while True:
        left = until - time.monotonic()
        assert left > 0, f"the last was {last}"
        with suppress(queue.Empty):
            message = peer.receive(left)
            if message.topic == topic:
                last = found = json.loads(message.payload)
                if fits(found):
                    return found


def _committed(release: int) -> Fits:
    return lambda s: s["state"] == "committed" and s["serving"]["release"] == release


def _answer(peer: Peer) -> tuple[str, int]:
    """The version of the model that answers, and how far its answer is from the picture's own."""
    peer.send("cameras/1/frame", picture(0))
    reply = json.loads(peer.receive().payload)
    return reply["model_version"], (reply["classes"][0]["index"] - int(truth()[0])) % 10


# Over HTTPS


@pytest.fixture
def https(tmp_path: Path, repo: Repo, pki: Path, stack: ExitStack) -> tuple[Nginx, str]:
    """nginx, which asks for client certificates, and the lines of ``[updates]`` for it."""
    nginx = Nginx(tmp_path / "nginx", repo.folder, pki, clients=True)
    stack.callback(nginx.stop)
    own = f'cert = "{pki}/box1.pem"\ncert_key = "{pki}/box1.key"\n'
    return nginx, f'{ROUTE}{QUICK}repository = "{nginx.url}"\nroot = "{repo.root}"\nca = "{pki}/ca.pem"\n{own}'


def test_releases_come_by_themselves_from_a_web_server_over_tls(
    tmp_path: Path, https: tuple[Nginx, str], repo: Repo, broker: Mosquitto, stack: ExitStack
) -> None:
    nginx, updates = https
    agent = Agent(tmp_path, broker.port, f"{updates}interval = 1\n")
    stack.callback(agent.kill)
    peer, asker = Peer(broker.port, [STATUS]), Peer(broker.port, ["predictions/1"])
    stack.callback(peer.close)
    stack.callback(asker.close)
    _until(peer, _committed(1))
    assert _answer(asker) == ("1", 1)
    repo.publish(variant(tmp_path, 2), 2)
    _until(peer, _committed(2))
    assert _answer(asker) == ("2", 2)
    fetched = [line for line in nginx.log() if "safetensors" in line]
    assert len(fetched) == 2  # each once
    assert all('" 206 ' in line or '" 200 ' in line for line in fetched)


def test_a_release_that_is_asked_for_is_answered_for_once_it_is_committed(
    tmp_path: Path, https: tuple[Nginx, str], broker: Mosquitto, stack: ExitStack
) -> None:
    nginx, updates = https
    agent = Agent(tmp_path, broker.port, f"{updates}interval = 0\n")
    stack.callback(agent.kill)
    peer = Peer(broker.port, [REPLY])
    stack.callback(peer.close)
    assert not nginx.log()
    peer.send(LOAD, b"", ResponseTopic=REPLY, CorrelationData=b"7")
    message = peer.receive(30)
    status = json.loads(message.payload)
    assert (status["state"], status["serving"]["release"]) == ("committed", 1)
    assert message.properties.CorrelationData == b"7"


def test_without_the_client_certificate_it_is_said_and_the_old_model_serves(
    tmp_path: Path, https: tuple[Nginx, str], broker: Mosquitto, stack: ExitStack
) -> None:
    updates = "".join(line for line in https[1].splitlines(True) if not line.startswith("cert"))
    agent = Agent(tmp_path, broker.port, f"{updates}interval = 0\n")
    stack.callback(agent.kill)
    peer, asker = Peer(broker.port, [REPLY]), Peer(broker.port, ["predictions/1"])
    stack.callback(peer.close)
    stack.callback(asker.close)
    peer.send(LOAD, b"", ResponseTopic=REPLY)
    error = peer.reply(30)["error"]
    assert error["code"] == "unreachable"
    assert "updates.cert" in error["message"]
    assert _answer(asker) == ("1", 0)  # the file's own


# Over the broker alone

LIMIT = 12_000  # bytes a second


class Locked:
    """A broker with TLS, client certificates and ``int8d acl``'s file; box1's daemon, and the repository's server."""

    def __init__(self, folder: Path, pki: Path, repo: Repo, stack: ExitStack) -> None:
        self._pki, self._stack = pki, stack
        self.broker = locked_broker(folder / "locked", pki)
        stack.callback(self.broker.stop)
        updates = f'{QUICK}transport = "mqtt"\nrepository = "{TOPIC}"\nroot = "{repo.root}"\ninterval = 0\n'
        pace = f"max_bytes_per_s = {LIMIT}\nrequest_timeout_s = 1.0\n"
        self.agent = Agent(folder, self.broker.port, f"{ROUTE}{updates}{pace}", broker=tls_toml(pki), wait=False)
        stack.callback(self.agent.kill)
        acl = [sys.executable, "-m", "agent.cli", "acl", str(self.agent.config), "--repository", f"publisher={TOPIC}",
               "--operator", "operator1", "--sender", "camera1=cameras/1/frame", "--client", "client1=box1",
               "--watcher", "watcher", "-o", str(folder / "locked" / "int8d.acl")]  # fmt: skip
        subprocess.run(acl, cwd=ROOT, check=True)
        self.broker.stop()
        self.broker.start()
        own = (word for name, file in _of_pki(pki, "publisher").items() for word in (f"--{name}", file))
        self.server = Served(repo.folder, self.broker.port, "--host", "localhost", *own)
        stack.callback(self.server.kill)
        self.agent.wait_log("connected over MQTT 5")

    def join(self, user: str, *topics: str) -> Peer:
        peer = Peer(self.broker.port, list(topics), client_id=user, **_of_pki(self._pki, user))
        self._stack.callback(peer.close)
        return peer


@pytest.fixture
def locked(tmp_path: Path, pki: Path, repo: Repo, stack: ExitStack) -> Locked:
    return Locked(tmp_path, pki, repo, stack)


def _publish(peer: Peer, topic: str, payload: bytes) -> str:
    """The broker's answer, in MQTT's words."""
    reasons: queue.Queue[str] = queue.Queue()
    peer.client.on_publish = lambda c, u, mid, reason, p: reasons.put(str(reason))
    peer.client.publish(topic, payload, 1)
    return reasons.get(timeout=10)


def test_a_device_that_reaches_the_broker_alone_gets_its_release_though_the_broker_dies(locked: Locked) -> None:
    operator, camera = locked.join("operator1", STATUS, REPLY), locked.join("camera1", "predictions/1")
    reached = _Reached(locked.agent.process.pid)
    began = time.monotonic()
    operator.send(LOAD, b"")
    early = _until(operator, lambda s: 0 < s["bytes_done"] < s["bytes"])
    locked.broker.kill()
    time.sleep(0.5)
    locked.broker.start()
    # Retained: whoever comes now learns how far it is.
    later = _until(locked.join("watcher", STATUS), lambda s: s["bytes_done"] > early["bytes_done"])
    assert later["state"] == "fetching"
    _until(operator, _committed(1))
    assert time.monotonic() - began > later["bytes"] / LIMIT / 2
    assert reached.end() == {locked.broker.port}
    assert _answer(camera) == ("1", 1)


def test_an_operator_asks_for_an_update_and_gets_the_reply_and_a_stranger_does_not(locked: Locked) -> None:
    operator = locked.join("operator1", REPLY)
    for user in ("camera1", "client1", "watcher", "publisher"):
        assert _publish(locked.join(user, REPLY), LOAD, b"") == "Not authorized", user
    operator.send(LOAD, b'{"parameters": {"action": "check"}}', ResponseTopic=REPLY, CorrelationData=b"1")
    status = operator.reply(30)
    assert (status["state"], status["available"]["release"]) == ("idle", 1)
    assert locked.agent.log().count("is asked for over MQTT") == 1


def test_a_server_that_comes_later_is_found(locked: Locked) -> None:
    """Nobody serves the repository at first; the device says so, and gets the release once somebody does."""
    locked.server.kill()
    operator = locked.join("operator1", REPLY)
    operator.send(LOAD, b"", ResponseTopic=REPLY)
    threading.Timer(1.5, locked.server.start).start()
    status = operator.reply(40)
    assert (status["state"], status["serving"]["release"]) == ("committed", 1)


class _Reached:
    """Ports that a process and its children have TCP connections to, until ``end``."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ports, self._over = pid, set[int](), threading.Event()
        self._children = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> set[int]:
        self._over.set()
        self._thread.join()
        assert self._children > 0  # what fetches was seen
        return self._ports

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for pid in self._family():
                with suppress(OSError):
                    self._add(pid)

    def _family(self) -> list[int]:
        pids = [self._pid]
        with suppress(OSError):
            for task in Path(f"/proc/{self._pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        self._children = max(self._children, len(pids) - 1)
        return pids

    def _add(self, pid: int) -> None:
        links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
        inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes and fields[3] != "0A":  # LISTEN
                    self._ports.add(int(fields[2].rpartition(":")[2], 16))
