"""A day at an edge box, in a quarter of an hour: resident memory must not grow.

58 messages a second for 24 hours are five million; here they come as fast as they are answered. What goes by the clock
goes as much faster: statistics every 5 s of the simulated day, the broker restarted every two hours of it, the sender
gone and back every half hour. Pictures, tensors, requests in JSON, refused ones, repetitions, a thousand topics.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.agent_process import picture
from tests.fire.stage import Gone, Ledger, Watch, stage
from tests.fire.wire import CONTENT_TYPE, Wire, text, varint

DAY_S = 86_400
MESSAGES = 5_000_000
_WINDOW = 200
_WARM_UP = 0.1  # of all messages
_ROUTES = """
[[route]]
subscribe = "soak/+/in"
model = "digits"
publish = "soak/{1}/out"
[[route]]
subscribe = "newest/+/in"
model = "digits"
publish = "newest/{1}/out"
overload = "latest_per_source"
deadline_ms = 60000
"""


def soak(
    messages: int = MESSAGES, per_s: float = 5000, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The figures. At most ``per_s`` messages a second are sent, which says how much faster than the clock the day
    goes; ``say`` gets one line of JSON every fiftieth of the way.
    """
    speed = DAY_S / (messages / per_s)
    with stage(rest=_ROUTES, stats_s=round(5 / speed, 4)) as (agent, broker):
        return _Day(agent.process.pid, broker, messages, say).play(speed, per_s)


class _Day:
    def __init__(self, pid: int, broker: Any, messages: int, say: Callable[[str], None]) -> None:
        self._broker, self._messages, self._say, self._pid = broker, messages, say, pid
        self._ledger = Ledger(keep_latencies=False)
        self._packets: dict[bytes, tuple[bytes, bytes, bytes]] = {}  # what is under way, to be sent again
        self._kinds = _kinds()
        self._wire = self._connect()
        self._resent = self._reconnects = self._restarts = 0

    def play(self, speed: float, per_s: float) -> dict[str, Any]:
        watch = Watch(0.25, agent=self._pid, broker=self._broker.pid)
        marks: list[tuple[int, float]] = []  # messages answered, seconds
        start, number, rng = time.monotonic(), 0, np.random.default_rng(24)
        hour = self._messages / 24
        next_restart, next_reconnect, next_word = 2 * hour, hour / 2, self._messages / 50
        order = rng.choice(len(self._kinds), 10_007, p=[share for _, share, *_ in self._kinds])
        while number < self._messages or self._packets:
            try:
                # At first as fast as it can: whatever comes later, as much has been under way once.
                due = max(self._messages // 50, int((time.monotonic() - start) * per_s) + 1)
                due = min(self._messages, due)
                while number < due and len(self._packets) < _WINDOW:
                    self._send(number, int(order[number % 10_007]))
                    number += 1
                if number >= next_restart:
                    next_restart += 2 * hour
                    self._restarts += 1
                    self._broker.stop()
                    self._broker.start()
                    watch.follow("broker", self._broker.pid)
                if number >= next_reconnect:
                    next_reconnect += hour / 2
                    raise Gone("for a while")
                self._wire.pump(0.5 if number < due or number == self._messages else 0.005)
            except Gone:
                self._again()
            answered = number - len(self._packets)
            if answered >= next_word:
                next_word += self._messages / 50
                marks.append((answered, time.monotonic() - start))
                self._say(json.dumps(self._figures(watch, marks, speed)))
        watch.stop()
        self._wire.close()
        marks.append((number, time.monotonic() - start))
        return self._figures(watch, marks, speed)

    def _connect(self) -> Wire:
        until = time.monotonic() + 20
        while True:
            try:
                return Wire(self._broker.port, "soak", [b"soak/+/out", b"newest/+/out"], self._reply)
            except (OSError, Gone):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _again(self) -> None:
        """A new connection, and everything unanswered once more: what a sender must do whose broker may forget."""
        self._wire.close()
        self._wire = self._connect()
        self._reconnects += 1
        time.sleep(0.05)  # the daemon may be back, too
        for packet in list(self._packets.values()):
            self._resent += 1
            self._wire.publish(*packet)

    def _send(self, number: int, kind: int) -> None:
        _, _, payload, content_type = self._kinds[kind]
        key = b"%d" % number
        topic = b"%s/%d/in" % (b"newest" if number % 7 == 0 else b"soak", number % 997)
        body = b"\x09" + text(key) + content_type
        packet = (topic, payload, varint(len(body)) + body)
        self._packets[key] = packet
        self._ledger.expect(key, 0.0)
        self._wire.publish(*packet)
        if number % 101 == 0:  # a repetition while the first is under way, or just answered
            self._wire.publish(*packet)

    def _reply(self, topic: bytes, payload: bytes, found: dict[int, list[bytes]]) -> None:
        taken = self._ledger.take(topic, payload, found)
        if taken is not None:
            del self._packets[taken[0]]

    def _figures(self, watch: Watch, marks: list[tuple[int, float]], speed: float) -> dict[str, Any]:
        answered, seconds = marks[-1]
        return {
            "answered": answered, "seconds": round(seconds, 1), "per_s": round(answered / seconds),
            "speed": round(speed, 1), "simulated_h": round(answered / self._messages * 24, 2),
            "codes": dict(self._ledger.codes), "unanswered": len(self._packets) if answered >= self._messages else 0,
            "repeated_answers": self._ledger.repeated, "resent": self._resent, "reconnects": self._reconnects,
            "broker_restarts": self._restarts, "agent": growth(watch.samples["agent"], seconds),
            "broker_mb": round(watch.peak("broker") / 1e6, 1),
        }  # fmt: skip


def growth(samples: list[tuple[float, int]], seconds: float) -> dict[str, float]:
    """Resident memory from the end of the warm-up to the end, in MB: both ends (medians of a fiftieth of the samples),
    their difference in per cent, the most, and the slope of the straight line through all, in kB an hour of the clock.
    """
    warm = [(t, size) for t, size in samples if t >= _WARM_UP * seconds] or samples
    share = max(1, len(warm) // 50)
    first, last = (float(np.median([size for _, size in part])) for part in (warm[:share], warm[-share:]))
    slope = float(np.polyfit([t for t, _ in warm], [size for _, size in warm], 1)[0]) if len(warm) > 2 else 0.0
    return {
        "after_warm_up_mb": round(first / 1e6, 2), "end_mb": round(last / 1e6, 2),
        "growth_pct": round((last / first - 1) * 100, 2), "most_mb": round(max(size for _, size in warm) / 1e6, 2),
        "slope_kb_per_h": round(slope * 3.6, 1), "samples": len(warm),
    }  # fmt: skip


def failures(figures: dict[str, Any], most_pct: float = 2.0) -> list[str]:
    """What does not hold of what must."""
    found = []
    if figures["unanswered"]:
        found.append(f"{figures['unanswered']} messages have no answer")
    if set(figures["codes"]) - {"answered", "invalid_input", "superseded"}:
        found.append(f"unexpected replies: {figures['codes']}")
    if figures["agent"]["growth_pct"] >= most_pct:
        found.append(f"memory grows: {figures['agent']}")
    return found


def _kinds() -> list[tuple[str, float, bytes, bytes]]:
    """Name, share, payload, and the content type's property."""

    def typed(name: bytes) -> bytes:
        return bytes((CONTENT_TYPE,)) + text(name)

    data = ",".join(str(n * 4 % 256) for n in range(64)).encode()
    request = b'{"id":"s","inputs":[{"name":"x","shape":[1,8,8,1],"datatype":"UINT8","data":[%s]}]}' % data
    binary = b'{"inputs":[{"name":"x","shape":[1,8,8,1],"datatype":"UINT8","parameters":{"binary_data_size":64}}]}'
    kinds = [("raw", bytes(64), b""), ("raw", bytes(range(64)), typed(b"application/octet-stream")),
             ("json", request, b""), ("binary", binary + bytes(64), typed(b"application/json"))]  # fmt: skip
    kinds += [("png", picture(i), typed(b"image/png")) for i in range(4)]
    kinds += [("refused", b"\x89PNG\r\n\x1a\nno", b""), ("refused", b"{]", b""), ("refused", b"", typed(b"text/html"))]
    shares = {"raw": 0.5, "json": 0.2, "binary": 0.05, "png": 0.2, "refused": 0.05}
    counts = {name: sum(k[0] == name for k in kinds) for name in shares}
    return [(name, shares[name] / counts[name], payload, typed_as) for name, payload, typed_as in kinds]
