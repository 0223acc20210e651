"""Ten times what the box sustains, under each overload policy.

Sustained is what a closed loop of eight gets; then ten times as many messages a second for a while, each sent at its
moment whatever comes back (an open loop). After that, a message every 20 ms until the idle latency is back.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fire.heavy import INPUT, heavy
from tests.fire.stage import Ledger, Watch, drain, percentiles, stage
from tests.fire.wire import Wire, properties

POLICIES = ("reject", "drop_oldest", "latest_per_source")
DEADLINE_MS = 500
FACTOR = 10
SOURCES = 20
_LOOP = 8
_PROBE_S = 0.02


def overload(policy: str, seconds: float, receive_maximum: int = 65_535) -> dict[str, Any]:
    """What happened, as figures; see ``failures``. ``seconds`` of load."""
    with TemporaryDirectory(prefix="fire") as folder:
        model = heavy(Path(folder) / "heavy.safetensors")
        # At some 10 ms each, those that may wait take less than half the deadline: room for a box that is slower now.
        route = (
            f'[[route]]\nsubscribe = "fire/+/in"\nmodel = "digits"\npublish = "fire/{{1}}/out"\noverload = "{policy}"\n'
            f"max_queue = {SOURCES}\ndeadline_ms = {DEADLINE_MS}\n"
        )
        settings = {"rest": route, "top": "[tuner]\nenabled = false", "broker": f"receive_maximum = {receive_maximum}"}
        with stage(model=model, **settings) as (agent, broker):
            return _Load(agent.process.pid, broker.pid, broker.port).play(policy, seconds)


class _Load:
    def __init__(self, agent: int, broker: int, port: int) -> None:
        self._ledger = Ledger()
        self._answered: list[tuple[float, float]] = []  # (when it was due, seconds) of the accepted, of late
        self._wire = Wire(port, "fire", [b"fire/+/out"], self._reply)
        self._watch = Watch(agent=agent, broker=broker)
        self._number = 0

    def play(self, policy: str, seconds: float) -> dict[str, Any]:
        idle = self._idle(50)
        sustained = self._closed_loop(max(2, min(5, int(seconds))))
        drain(self._wire, self._ledger, 20)
        before = self._watch.samples["agent"][-1][1]
        self._ledger = Ledger()
        self._watch.samples["agent"].clear()
        self._watch.samples["broker"].clear()
        start = time.monotonic()
        late = self._open_loop(FACTOR * sustained, seconds)
        ended = time.monotonic()
        recovered = self._recovery(ended, idle)
        drained = drain(self._wire, self._ledger, 20)
        self._watch.stop()
        ledger, watch = self._ledger, self._watch
        self._wire.close()
        accepted = ledger.latencies.get("answered", [])
        refused = [s for code, each in ledger.latencies.items() if code != "answered" for s in each]
        return {
            "policy": policy,
            "seconds": round(ended - start, 1),
            "idle_ms": percentiles(idle),
            "sustained_per_s": round(sustained, 1),
            "load_per_s": round(FACTOR * sustained, 1),
            "sender_late_ms": round(late * 1e3, 1),
            "sent": ledger.sent,
            "replies": dict(ledger.codes),
            "unanswered": len(ledger.waiting),
            "drained": drained,
            "accepted_ms": percentiles(accepted),
            "refused_ms": percentiles(refused),
            "deadline_ms": DEADLINE_MS,
            "recovery_s": recovered,
            "agent_mb": {"before": _mb(before), "second_quarter": _mb(watch.peak("agent", 0.25, 0.5)),
                         "last_quarter": _mb(watch.peak("agent", 0.75, 1.0))},
            "broker_mb": {"second_quarter": _mb(watch.peak("broker", 0.25, 0.5)),
                          "last_quarter": _mb(watch.peak("broker", 0.75, 1.0))},
        }  # fmt: skip

    def _send(self, at: float) -> None:
        key = b"%d" % self._number
        self._ledger.expect(key, at)
        self._wire.publish(b"fire/%d/in" % (self._number % SOURCES), INPUT, properties(correlation=key))
        self._number += 1

    def _reply(self, topic: bytes, payload: bytes, found: dict[int, list[bytes]]) -> None:
        taken = self._ledger.take(topic, payload, found)
        if taken is not None and taken[1] == "answered":
            self._answered.append((time.monotonic() - taken[2], taken[2]))

    def _idle(self, count: int) -> list[float]:
        """One at a time."""
        for _ in range(count):
            self._send(time.monotonic())
            drain(self._wire, self._ledger, 20)
        return list(self._ledger.latencies["answered"])

    def _closed_loop(self, seconds: int) -> float:
        """Messages a second with never more than a few under way: of the best of some seconds, whatever else runs."""
        rates: list[float] = []
        for _ in range(seconds):
            start, done = time.monotonic(), len(self._answered)
            while time.monotonic() - start < 1:
                while len(self._ledger.waiting) < _LOOP:
                    self._send(time.monotonic())
                self._wire.pump(0.1)
            rates.append((len(self._answered) - done) / (time.monotonic() - start))
        return max(rates)

    def _open_loop(self, rate: float, seconds: float) -> float:
        """Sends at the rate; how late, at worst, a message left."""
        start, sent, late = time.monotonic(), 0, 0.0
        while (now := time.monotonic()) < start + seconds:
            while (due := start + sent / rate) <= now:
                late = max(late, now - due)
                self._send(now)
                sent += 1
            self._wire.pump(max(0.0, min(0.01, start + sent / rate - time.monotonic())))
        return late

    def _recovery(self, ended: float, idle: list[float]) -> float | None:
        """Seconds after the load until the latency is the idle one again (five in a row within twice its median, or
        within its p99); None if that takes more than ten.
        """
        ordered = sorted(idle)
        good = max(2 * ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)])
        self._answered.clear()
        due = time.monotonic()
        while due < ended + 10:
            self._send(due)
            due += _PROBE_S
            while (left := due - time.monotonic()) > 0:
                self._wire.pump(left)
            probes = sorted(p for p in self._answered if p[0] > ended)
            for i in range(len(probes) - 4):
                if all(seconds <= good for _, seconds in probes[i : i + 5]):
                    return round(max(0.0, probes[i][0] - ended), 3)
        return None


def _mb(size: int) -> float:
    return round(size / 1e6, 1)


def failures(figures: dict[str, Any], timed: bool = True) -> list[str]:
    """What does not hold of what must. timed: times and the last megabyte, on a quiet machine."""
    memory, found = figures["agent_mb"], []
    if figures["unanswered"] or sum(figures["replies"].values()) != figures["sent"]:
        found.append(f"{figures['unanswered']} messages have no answer")
    if set(figures["replies"]) - {"answered", "overloaded", "superseded", "expired"}:
        found.append(f"unexpected replies: {figures['replies']}")
    if not figures["replies"].get("answered"):
        found.append("nothing was accepted")
    if memory["last_quarter"] > memory["second_quarter"] * (1.02 if timed else 1.25):
        found.append(f"memory grows: {memory}")
    if not timed:
        return found
    if figures["accepted_ms"] and figures["accepted_ms"]["p99"] > figures["deadline_ms"]:
        found.append(f"p99 of the accepted is {figures['accepted_ms']['p99']} ms")
    if figures["recovery_s"] is None or figures["recovery_s"] > 2:
        found.append(f"recovery took {figures['recovery_s']} s")
    return found
