"""A device with all that is around it: a repository behind a web server, a broker, the daemon as a process.

with Device(tmp_path) as device:
    device.publish(1)
    device.load()                  # by MQTT, and waits for the end
    device.answers()               # 1: the release whose answers these are
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from models.repository.keys import Keys
from tests.agent_process import ROOT, ROUTE, Agent, Peer, picture, truth
from tests.broker import Mosquitto
from tests.repository import Repo, make
from tests.updates.web import Web
from tests.variants import variant

QUICK = "shadow_s = 0.2\nprobation_s = 0.5\nmin_free_bytes = 1\n"
STATUS = "int8d/box1/v2/repository/models/digits/status"
LOAD = "int8d/box1/v2/repository/models/digits/load"
ENDED = ("committed", "rolled_back")


class Device:
    """Release ``n`` is a digits model whose answers are ``n`` further than the file's of int8d.toml; so ``n`` < 10.

    updates: more lines of ``[updates]``. rest: of int8d.toml. module: of the process. Started with ``start``, or by
    entering it.
    """

    def __init__(
        self, folder: Path, updates: str = QUICK, rest: str = ROUTE, module: str = "agent.cli", repo: Repo | None = None
    ) -> None:
        self.folder, self._updates, self._rest, self._module = folder, updates, rest, module
        self._stack = ExitStack()
        self.repo = repo or make(folder / "publisher")
        self._files = folder / "files"
        self._files.mkdir(exist_ok=True)
        self.web = Web(self.repo.folder)
        self._stack.callback(self.web.close)
        (folder / "broker").mkdir(exist_ok=True)
        self.broker = Mosquitto(folder / "broker")
        self._stack.callback(self.broker.stop)
        self.agent: Agent
        self.peer: Peer

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, environment: dict[str, str] | None = None) -> None:
        """The daemon, and who listens to it."""
        updates = f'[updates]\nrepository = "{self.web.url}"\nroot = "{self.repo.root}"\ninterval = 0\n{self._updates}'
        kind = type("Planted", (Agent,), {"module": self._module})
        tuner = "[tuner]\nenabled = false\n"
        self.agent = kind(
            self.folder, self.broker.port, f"{self._rest}\n{tuner}{updates}", environment=environment or {}, stats_s=1
        )
        self._stack.callback(self.agent.kill)
        self.listen()

    def restart(self, environment: dict[str, str] | None = None) -> None:
        """The process is gone; the next one starts."""
        self.agent._environment = environment or {}
        self.agent.start()

    def listen(self) -> None:
        self.peer = Peer(self.broker.port, [STATUS])
        self._stack.callback(self.peer.close)

    def publish(self, release: int, model: Path | None = None, **options: Any) -> None:
        """Release ``release``, or another file under this number."""
        self.repo.publish(model or variant(self._files, release), release, **options)

    def ask(self, action: str = "install", release: int | None = None) -> None:
        """By MQTT; does not wait."""
        parameters = {"action": action} | ({} if release is None else {"release": release})
        self.peer.send(LOAD, json.dumps({"parameters": parameters}).encode())

    def load(self, release: int | None = None, timeout: float = 30) -> dict[str, Any]:
        """Asks for what is due, or a release, and waits for the end; the status then."""
        self.drain()
        self.ask("install", release)
        return self.wait(lambda s: s["state"] in ENDED or s["repository"] is not None, timeout)

    def drain(self) -> None:
        """Forgets what has been told up to now."""
        time.sleep(0.05)
        while not self.peer.messages.empty():
            self.peer.messages.get()

    def wait(self, fits: Any, timeout: float = 30) -> dict[str, Any]:
        """The next status that fits, of those that are published."""
        until = time.monotonic() + timeout
        status: dict[str, Any] = {}
        while True:
            left = until - time.monotonic()
            assert left > 0, f"the last status is {status}; {self.agent.log()}"
            try:
                status = json.loads(self.peer.receive(min(left, 1)).payload)
            except Exception:
                assert self.agent.process.poll() is None, self.agent.log()
                continue
            if fits(status):
                return status

    def status(self) -> dict[str, Any]:
        """What is retained now, for whoever comes."""
        peer = Peer(self.broker.port, [STATUS])
        try:
            return json.loads(peer.receive(5).payload)
        finally:
            peer.close()

    def answers(self) -> int:
        """The release that an answer shows; it must be right, and its version must say the same."""
        peer = Peer(self.broker.port, ["predictions/1"])
        try:
            peer.send("cameras/1/frame", picture(0))
            reply = peer.reply()
        finally:
            peer.close()
        shift = (reply["classes"][0]["index"] - int(truth()[0])) % 10
        assert reply["model_version"] == (str(shift) if shift else "1"), reply
        return shift

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``int8d update …``."""
        command = [sys.executable, "-m", "agent.cli", "update", *arguments, "--config", str(self.agent.config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    @property
    def state(self) -> Path:
        """Of its updates."""
        return self.folder / "state" / "box1" / "updates"


def prepare(folder: Path) -> None:
    """A device that has release 1, to be copied."""
    with Device(folder) as device:
        device.publish(1)
        assert device.load()["state"] == "committed"
        assert device.answers() == 1


def copied(prepared: Path, folder: Path) -> Repo:
    """What a device and its publisher have, for another one; its ``repo``."""
    shutil.copytree(prepared / "publisher", folder / "publisher")
    unlike = shutil.ignore_patterns("control")
    shutil.copytree(prepared / "state", folder / "state", symlinks=True, ignore=unlike, dirs_exist_ok=True)
    keys = Keys(folder / "publisher" / "keys")
    return Repo(folder / "publisher" / "repository", keys.folder, keys.root)
