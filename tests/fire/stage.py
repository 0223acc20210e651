"""Where the scenarios play: a real mosquitto, the daemon as a process, a sender, and an eye on everybody's memory."""

from __future__ import annotations

import json
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agent_process import Agent
from tests.broker import Mosquitto
from tests.fire.wire import CORRELATION, Gone, Properties, Wire

MEMORY_LIMIT = 512 * 1024 * 1024  # MemoryMax of systemd/int8d.service
# What stands in the way of a load: mosquitto's limits for a client, and its file, rewritten at each change.
BROKER = "max_inflight_messages 0\nautosave_on_changes false\nautosave_interval 3600"


class Planted(Agent):
    """The daemon with planted faults (tests/planted.py), started again by ``supervise`` as systemd would."""

    module = "tests.planted"
    deaths = 0

    def supervise(self) -> None:
        """Starts it again where it has ended; to be called often."""
        if self.process.poll() is not None:
            self.deaths += 1
            self.start(wait=False)


@contextmanager
def stage(
    kind: type[Agent] = Agent, data_limit: int = MEMORY_LIMIT, **settings: Any
) -> Iterator[tuple[Agent, Mosquitto]]:
    """A broker and a daemon, ended and cleared away in the end; ``settings`` are ``Agent``'s. data_limit: bytes beyond
    which an allocation of the daemon's fails.
    """
    with tempfile.TemporaryDirectory(prefix="fire") as name:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = Mosquitto(folder / "broker", BROKER)
        agent: Agent | None = None
        try:
            agent = kind(folder, broker.port, **settings)
            resource.prlimit(agent.process.pid, resource.RLIMIT_DATA, (data_limit, data_limit))
            yield agent, broker
        finally:
            if agent is not None:
                agent.kill()
            broker.stop()


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes resident now, or at the most (``VmHWM``), of a process; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(what)), 0)
    except OSError:
        return 0


class Watch(threading.Thread):
    """Samples the resident memory of processes by name: ``samples[name]`` is a list of (seconds, bytes)."""

    def __init__(self, every_s: float = 0.1, **pids: int) -> None:
        super().__init__(daemon=True)
        self._every_s, self._pids, self._ended = every_s, pids, threading.Event()
        self._start_time = time.monotonic()
        self.samples: dict[str, list[tuple[float, int]]] = {name: [] for name in pids}
        self._sample()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic() - self._start_time
        for name, pid in self._pids.items():
            self.samples[name].append((now, memory(pid)))

    def follow(self, name: str, pid: int) -> None:
        """The process of this name is another one now."""
        self._pids[name] = pid

    def peak(self, name: str, first: float = 0.0, last: float = 1.0) -> int:
        """The most bytes between two fractions of the samples taken."""
        values = [value for _, value in self.samples[name]]
        return max(values[int(len(values) * first) : max(1, int(len(values) * last))], default=0)

    def stop(self) -> None:
        self._ended.set()
        self.join()


class Ledger:
    """Each message under a key, answered once or more. A key is what a reply brings back: the correlation, or, where
    a message has none of its own, the reply's topic.
    """

    def __init__(self, keep_latencies: bool = True) -> None:
        self.waiting: dict[bytes, float] = {}  # when it was sent
        self.codes: Counter[str] = Counter()  # "answered", or the error's code
        self.latencies: dict[str, list[float]] = {}
        self.sent = self.repeated = 0
        self._keep = keep_latencies

    def expect(self, key: bytes, at: float) -> None:
        """A message goes out under ``key``, due at the moment ``at`` (``time.monotonic``)."""
        self.waiting[key] = at
        self.sent += 1

    def take(self, topic: bytes, payload: bytes, properties: Properties) -> tuple[bytes, str, float] | None:
        """A reply: its key, its code, its seconds; None where nobody waits for it (any more)."""
        key = properties[CORRELATION][0] if CORRELATION in properties else topic
        if key not in self.waiting:
            key = topic
        sent = self.waiting.pop(key, None)
        if sent is None:
            self.repeated += 1
            return None
        seconds = time.monotonic() - sent
        code = code_of(payload)
        self.codes[code] += 1
        if self._keep:
            self.latencies.setdefault(code, []).append(seconds)
        return key, code, seconds


def code_of(payload: bytes) -> str:
    """The code of an error reply, else ``answered``."""
    if payload.startswith(b'{"error":'):
        return str(json.loads(payload)["error"]["code"])
    assert b'"model_name"' in payload, payload[:200]
    return "answered"


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and the most, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    at = {"p50": 0.5, "p99": 0.99}
    named = {name: ordered[min(len(ordered) - 1, int(len(ordered) * p))] for name, p in at.items()}
    return {name: round(value * 1e3, 2) for name, value in (named | {"max": ordered[-1]}).items()}


def drain(wire: Wire, ledger: Ledger, timeout: float) -> bool:
    """Waits until nothing is unanswered, at most ``timeout`` seconds without any reply."""
    until = time.monotonic() + timeout
    while ledger.waiting:
        if wire.pump(0.1):
            until = time.monotonic() + timeout
        if time.monotonic() > until:
            return False
    return True


__all__ = [
    "MEMORY_LIMIT", "Gone", "Ledger", "Planted", "Watch", "code_of", "drain", "memory", "percentiles", "stage",
]  # fmt: skip
