"""Hostile messages by the million: the daemon lives, keeps within its memory, and answers each.

Memory: what the unit allows (MemoryMax=512M), held against the most that was ever resident, and given to the kernel as
the limit of what the process may allocate, so that a payload which asks for more meets a refusal.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.agent_process import Agent
from tests.fire.payloads import ROUTES, SUBSCRIPTIONS, Hostile
from tests.fire.stage import MEMORY_LIMIT, Gone, Ledger, memory, stage
from tests.fire.wire import Wire

_WINDOW = 200  # messages unanswered at a time
_WINDOW_BYTES = 8_000_000
_PATIENCE_S = 30.0
CODES = {"answered", "invalid_input", "unknown_model", "expired"}  # all that they may be answered with


def hostile(
    first: int,
    count: int,
    memory_limit: int = MEMORY_LIMIT,
    per_s: float = 100_000,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Cases ``first`` to ``first + count``, at most ``per_s`` a second. The daemon is one process from the first to the
    last. ``say`` gets one line of JSON every fiftieth of the way.
    """
    with stage(Agent, rest=ROUTES, data_limit=memory_limit) as (agent, broker):
        return _Run(agent, broker.port, memory_limit).play(first, count, per_s, say)


class _Run:
    def __init__(self, agent: Agent, port: int, memory_limit: int) -> None:
        self._agent, self._limit = agent, memory_limit
        self._cases: dict[bytes, tuple[int, str, int]] = {}  # what is under way: number, kind, bytes
        self._ledger, self._codes = Ledger(keep_latencies=False), Counter[str]()
        self._wire = Wire(port, "hostile", SUBSCRIPTIONS, self._reply)
        self._under_way = 0
        self._odd: list[str] = []
        self._ended = ""  # why the run ended before its time

    def play(self, first: int, count: int, per_s: float, say: Callable[[str], None]) -> dict[str, Any]:
        make, start, number = Hostile(), time.monotonic(), first
        moved, next_word = start, first + count / 50
        while (number < first + count or self._cases) and not self._ended:
            due = min(first + count, first + int((time.monotonic() - start) * per_s) + 1)
            try:
                while number < due and len(self._cases) < _WINDOW and self._under_way < _WINDOW_BYTES:
                    self._send(make, number)
                    number += 1
                if self._wire.pump(0.2 if self._cases else 0.005):
                    moved = time.monotonic()
            except Gone as e:
                self._ended = f"the broker: {e}"
            if self._cases and time.monotonic() > moved + _PATIENCE_S:
                self._ended = "no reply any more"
            if self._agent.process.poll() is not None:
                self._ended = f"the daemon ended with {self._agent.process.returncode}"
            if number >= next_word:
                next_word += count / 50
                say(json.dumps(self._figures(first, number, time.monotonic() - start)))
        return self._figures(first, number, time.monotonic() - start)

    def _figures(self, first: int, number: int, seconds: float) -> dict[str, Any]:
        log, pid = self._agent.log(), self._agent.process.pid
        return {
            "first": first, "sent": number - first, "seconds": round(seconds, 1),
            "codes": dict(sorted(self._ledger.codes.items())), "kinds": dict(sorted(self._codes.items())),
            "repeated": self._ledger.repeated, "unanswered": [n for n, _, _ in self._cases.values()],
            "ended": self._ended, "odd": self._odd, "peak_mb": round(memory(pid, "VmHWM") / 1e6, 1),
            "resident_mb": round(memory(pid) / 1e6, 1), "limit_mb": round(self._limit / 1e6, 1),
            "log_mb": round(len(log) / 1e6, 1), "connected": log.count("connected over MQTT"),
            "tracebacks": log.count("Traceback"), "log": log[-2000:] if self._ended else "",
        }  # fmt: skip

    def _send(self, make: Hostile, number: int) -> None:
        case = make.case(number)
        assert case.key not in self._cases, case
        self._cases[case.key] = (number, case.kind, len(case.payload))
        self._under_way += len(case.payload)
        self._ledger.expect(case.key, time.monotonic())
        self._wire.publish(case.topic, case.payload, case.properties)

    def _reply(self, topic: bytes, payload: bytes, found: dict[int, list[bytes]]) -> None:
        taken = self._ledger.take(topic, payload, found)
        if taken is None:
            return
        key, code, _ = taken
        number, kind, size = self._cases.pop(key)
        self._under_way -= size
        self._codes[f"{kind} {code}"] += 1
        if code not in CODES and len(self._odd) < 50:
            self._odd.append(f"{number} {kind}: {payload[:200].decode(errors='replace')}")


def failures(figures: dict[str, Any]) -> list[str]:
    """What does not hold of what must."""
    found = [figures["ended"]] if figures["ended"] else []
    if figures["unanswered"]:
        found.append(f"unanswered cases: {figures['unanswered'][:20]}")
    if figures["odd"]:
        found.append(f"{len(figures['odd'])} cases got an odd reply")
    if figures["peak_mb"] > figures["limit_mb"]:
        found.append(f"{figures['peak_mb']} MB were resident, more than {figures['limit_mb']}")
    if figures["tracebacks"] or figures["connected"] > 1:
        found.append(f"{figures['tracebacks']} tracebacks, {figures['connected']} connections")
    return found
