"""Updates back to back under traffic: no message unanswered, none past its deadline, memory flat.

    python -m tests.updates swaps                    # 1,000 at 100 messages a second; the result, into docs/updates.md
    python -m tests.updates swaps --count 20 --dry   # fewer, and only printed

Each release is a digits model of its own, whose answers are one class further than those of the one before, and each
goes the whole way: published, found, fetched, tested, loaded, shadowed, switched, on probation, committed. So each
answer shows which release gave it; and its ``model_version`` must say the same.
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent_process import Peer, picture, truth
from tests.updates.device import Device
from tests.updates.tables import table

DEADLINE_MS = 250
ROUTE = (f'version = "0"\n[[route]]\nsubscribe = "cameras/+/frame"\nmodel = "digits"\npublish = "predictions/{{1}}"\n'
         f"deadline_ms = {DEADLINE_MS}\n")  # fmt: skip
QUICK = "shadow_s = 0.1\nprobation_s = 0.2\nmin_free_bytes = 1\n"
_PICTURES = 40
_TENTH = 10  # memory of the first tenth of the updates is held against that of the last


class Traffic:
    """Pictures at a steady rate, and what is answered. Of each: when it was sent, when answered, by which release."""

    def __init__(self, port: int, rate: float) -> None:
        self._rate = rate
        self._pictures = [picture(i) for i in range(_PICTURES)]
        self._truth = [int(label) for label in truth()]
        self._peer = Peer(port, ["answers"])
        self._peer.client.on_message = self._answered
        # Or what is measured is the 40 ms that TCP waits to fill a packet (README.md).
        self._peer.client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent: dict[int, float] = {}
        self.took_ms: list[float] = []
        self.releases: list[int] = []
        self.wrong: list[str] = []
        self.twice = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._number = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Sends no more, and waits for the last answers."""
        self._ended.set()
        self._thread.join()
        until = time.monotonic() + 10
        while self.sent and time.monotonic() < until:
            time.sleep(0.01)
        self._peer.close()

    @property
    def count(self) -> int:
        return self._number

    def _send(self) -> None:
        begun = time.monotonic()
        while not self._ended.is_set():
            number = self._number
            self._number += 1
            self.sent[number] = time.monotonic()
            self._peer.client.publish("cameras/1/frame", self._pictures[number % _PICTURES], 1,
                                      properties=_properties(number))  # fmt: skip
            self._ended.wait(max(0.0, begun + self._number / self._rate - time.monotonic()))

    def _answered(self, client: object, data: object, message: object) -> None:
        number = int(message.properties.CorrelationData)  # type: ignore[attr-defined]
        sent = self.sent.pop(number, None)
        if sent is None:
            self.twice += 1
            return
        self.took_ms.append((time.monotonic() - sent) * 1000)
        reply = json.loads(message.payload)  # type: ignore[attr-defined]
        if "error" in reply:
            self.wrong.append(f"message {number}: {reply['error']}")
            return
        release = int(reply["model_version"])
        shift = (reply["classes"][0]["index"] - self._truth[number % _PICTURES]) % 10
        self.releases.append(release)
        if self._certain(number) and shift != release % 10:
            self.wrong.append(f"message {number}: answered as release {release}, but by {shift} further")

    def _certain(self, number: int) -> bool:
        """Whether the model of the zoo is right about the picture."""
        return number % _PICTURES not in _MISTAKEN


def _mistaken() -> frozenset[int]:
    from agent.engine import load
    from agent.predict import Predictor
    from tests.agent_process import DIGITS

    predictor = Predictor(load(DIGITS))
    labels = truth()
    replies = [json.loads(predictor.predict(picture(i))) for i in range(_PICTURES)]
    return frozenset(i for i, r in enumerate(replies) if r["classes"][0]["index"] != int(labels[i]))


_MISTAKEN = _mistaken()


def _properties(number: int) -> object:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    bag = Properties(PacketTypes.PUBLISH)
    bag.ResponseTopic, bag.CorrelationData = "answers", str(number).encode()
    return bag


@dataclass
class Result:
    """unanswered, late, wrong, twice: messages. backwards: answers of an older release after a newer one's. memory_mb:
    after each update.
    """

    updates: int = 0
    seconds: float = 0.0
    messages: int = 0
    unanswered: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)
    twice: int = 0
    backwards: int = 0
    answered_by: int = 0
    took_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of the memory: the median of the last tenth over that of the first, behind a warm-up of as many."""
        n = max(1, len(self.memory_mb) // _TENTH)
        first = self.memory_mb[n : 2 * n] or self.memory_mb[:n]
        return statistics.median(self.memory_mb[-n:]) / statistics.median(first) - 1

    @property
    def good(self) -> bool:
        return not (self.unanswered or self.late or self.wrong or self.twice or self.backwards) and self.growth < 0.02

    def rows(self) -> list[tuple[str, str]]:
        took = sorted(self.took_ms)
        n = max(1, len(self.memory_mb) // _TENTH)
        first = statistics.median(self.memory_mb[n : 2 * n] or self.memory_mb[:n])
        return [
            ("updates, each to its commitment", f"{self.updates:,}, in {self.seconds:,.0f} s"),
            ("messages", f"{self.messages:,}"),
            ("unanswered", f"{self.unanswered}"),
            (f"later than the deadline of {DEADLINE_MS} ms", f"{self.late}"),
            ("refused, or by another model than the answer says", f"{len(self.wrong)}"),
            ("releases that answers came from", f"{self.answered_by:,}"),
            ("answers by an older release after a newer one's", f"{self.backwards}"),
            ("sender to answer, p50 / p99 / p99.9 / longest", " / ".join(
                f"{took[min(len(took) - 1, int(len(took) * p))]:.1f}" for p in (0.5, 0.99, 0.999, 1)) + " ms"),
            ("resident memory, second tenth to last tenth",
             f"{first:.1f} to {statistics.median(self.memory_mb[-n:]):.1f} MB ({100 * self.growth:+.2f} %)"),
        ]  # fmt: skip


def swaps(folder: Path, count: int, rate: float, progress: bool = False) -> Result:
    """Takes ``count`` updates one after the other."""
    result = Result()
    with Device(folder, QUICK, ROUTE) as device:
        traffic = Traffic(device.broker.port, rate)
        traffic.start()
        begun = time.monotonic()
        try:
            for release in range(1, count + 1):
                device.publish(release)
                shutil.rmtree(folder / "files")
                (folder / "files").mkdir()
                device.ask()
                status = device.wait(lambda s, n=release: s["target"] and s["target"]["release"] == n and
                                     s["state"] in ("committed", "rolled_back"), 120)  # fmt: skip
                assert status["state"] == "committed", status
                result.memory_mb.append(device.agent.resident_mb())
                if progress and release % 50 == 0:
                    print(f"{release} updates, {time.monotonic() - begun:.0f} s, {traffic.count} messages, "
                          f"{result.memory_mb[-1]:.1f} MB, longest {max(traffic.took_ms):.0f} ms, "
                          f"{len(traffic.wrong)} wrong", flush=True)  # fmt: skip
        finally:
            traffic.stop()
        result.updates, result.seconds = count, time.monotonic() - begun
        result.messages, result.unanswered = traffic.count, len(traffic.sent)
        result.took_ms, result.wrong, result.twice = traffic.took_ms, traffic.wrong, traffic.twice
        result.late = sum(ms > DEADLINE_MS for ms in traffic.took_ms)
        # Replies may pass one another on the way back only where two workers answer; here is one.
        result.backwards = sum(b < a for a, b in zip(traffic.releases, traffic.releases[1:], strict=False))
        result.answered_by = len(set(traffic.releases))
        assert "Traceback" not in device.agent.log(), device.agent.log()
    return result


def report(result: Result, rate: float) -> str:
    """In Markdown."""
    return table(("", f"at {rate:g} messages a second"), result.rows())
