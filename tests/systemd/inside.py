"""What the scenarios use inside the container: the unit as systemd sees it, and a sender that counts its answers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.agent_process import Peer, picture

UNIT = "int8d.service"
CONFIG = Path("/etc/int8d/int8d.toml")
STATE = Path("/var/lib/int8d")
MODEL = "/etc/int8d/digits.int8.safetensors"
PYTHON = "/opt/int8d/bin/python"
DROP_INS = Path(f"/etc/systemd/system/{UNIT}.d")
WATCHDOG_S = 3  # of scenarios that wait for it
_SHOWN = "ActiveState,SubState,Result,NRestarts,ExecMainCode,ExecMainStatus,StatusText,MainPID"


def run(*command: str) -> str:
    """A command's output, both streams, whatever its status."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.stdout.strip()


def show(properties: str = _SHOWN) -> dict[str, str]:
    """``systemctl show`` of the unit."""
    lines = run("systemctl", "show", UNIT, "-p", properties).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def journal(since: float) -> list[str]:
    """The unit's messages and systemd's about it, from the time ``since`` (seconds since 1970) on."""
    subprocess.run(["journalctl", "--sync"])
    return run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager", f"--since=@{since:.6f}").splitlines()


def wait(true: Callable[[], object], timeout: float = 30) -> bool:
    """Whether ``true`` came to hold within ``timeout`` seconds."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())


class Service:
    """The unit, stopped and clean, with a configuration of its own.

    drop_in: lines of its ``[Service]``. planted: run the daemon that has faults planted. top, broker, model, rest:
    lines of the configuration, before its tables, under ``[broker]``, under ``[[model]]``, and behind all.
    """

    def __init__(self, port: int, drop_in: str = "", planted: bool = False, top: str = "", broker: str = "",
                 model: str = f'path = "{MODEL}"', rest: str = "") -> None:  # fmt: skip
        run("systemctl", "stop", UNIT)
        CONFIG.write_text(
            f'device = "box1"\n{top}\n[broker]\nport = {port}\nreconnect_min_s = 0.05\nreconnect_max_s = 0.2\n'
            f'{broker}\n[[model]]\nname = "digits"\n{model}\n'
            f'[[route]]\nsubscribe = "cameras/+/frame"\nmodel = "digits"\npublish = "predictions/{{1}}"\n{rest}\n'
        )
        if planted:
            drop_in += (
                f"\nExecStart=\nExecStart={PYTHON} -m tests.planted run --config {CONFIG}\n"
                "Environment=PYTHONPATH=/opt/tests\n"
            )
        DROP_INS.mkdir(exist_ok=True)
        (DROP_INS / "scenario.conf").write_text(f"[Service]\n{drop_in}\n")
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed", UNIT)
        self.since = time.time()

    def start(self) -> dict[str, object]:
        """``systemctl start``; returns what it said, how long it took, and whether the unit was active right after."""
        began = time.monotonic()
        said = run("systemctl", "start", UNIT)
        took = time.monotonic() - began
        return {"said": said, "took_s": round(took, 2), "is_active": run("systemctl", "is-active", UNIT)}

    def connected(self, timeout: float = 30) -> bool:
        """Waits until the unit's status says that the broker has taken it."""
        return wait(lambda: show("StatusText")["StatusText"].startswith("connected"), timeout)

    def restarted(self, times: int, timeout: float = 60) -> bool:
        """Waits until systemd has started it again so often, and it runs."""
        return wait(lambda: int(show()["NRestarts"]) >= times and show()["SubState"] == "running", timeout)

    def journal(self) -> list[str]:
        return journal(self.since)


class Load:
    """Sends pictures, each on a topic of its own, and counts the answers by topic.

    available: the last payload of the device's topic of that name. dead: its dead letters. errors: refusals, by code.
    """

    def __init__(self, port: int) -> None:
        self._peer = Peer(port, ["predictions/#", "int8d/box1/available", "int8d/box1/dead-letter"])
        self.sent = 0
        self.answers: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.available = ""
        self.dead: list[bytes] = []
        self._labels: dict[int, set[str]] = {}
        self._over = threading.Event()
        self._sender = threading.Thread(target=lambda: None)
        self._sender.start()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def begin(self, rate: float, count: int = 1 << 30) -> None:
        """Sends so many a second from now on, in a thread: ``count`` at most, until ``end``."""
        self._over.clear()
        self._sender = threading.Thread(target=self._send, args=(rate, count))
        self._sender.start()

    def join(self) -> None:
        """Waits for the last of ``count``."""
        self._sender.join(60)

    def end(self) -> None:
        """Sends no more."""
        self._over.set()
        self._sender.join(10)

    def plant(self, what: str) -> None:
        """A message that does what ``tests.planted`` reads in it."""
        self._peer.send("cameras/plant/frame", f"PLANT {what}".encode())

    def answered(self, timeout: float = 30) -> bool:
        """Waits for an answer to each picture."""
        return wait(lambda: len(self.answers) == self.sent, timeout)

    def report(self) -> dict[str, object]:
        """sent, answered, repeated (answered more than once), unsteady (a picture with answers that differ), errors
        (by code), available, dead (letters)."""
        return {
            "sent": self.sent,
            "answered": len(self.answers),
            "repeated": sum(count > 1 for count in self.answers.values()),
            "unsteady": sum(len(labels) > 1 for labels in self._labels.values()),
            "errors": dict(self.errors),
            "available": self.available,
            "dead": [letter.decode() for letter in self.dead],
        }

    def close(self) -> None:
        self.end()
        self._peer.close()
        self._peer.messages.put(None)
        self._reader.join(10)

    def _send(self, rate: float, count: int) -> None:
        began = time.monotonic()
        for i in range(count):
            if self._over.wait(max(0.0, began + i / rate - time.monotonic())):
                return
            self._peer.client.publish(f"cameras/{self.sent}/frame", picture(self.sent % 40), 1)
            self.sent += 1

    def _read(self) -> None:
        while (message := self._peer.messages.get()) is not None:
            if message.topic == "int8d/box1/dead-letter":
                self.dead.append(message.payload)
            elif message.topic == "int8d/box1/available":
                self.available = message.payload.decode()
            else:
                reply, name = json.loads(message.payload), message.topic.split("/")[1]
                if "error" in reply:
                    self.errors[reply["error"]["code"]] += 1
                if name.isdigit() and "classes" in reply:
                    self.answers[int(name)] += 1
                    self._labels.setdefault(int(name) % 40, set()).add(reply["classes"][0]["label"])
