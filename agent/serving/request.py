"""What passes between a transport and the serving code: bytes in, bytes out, and the ledger of the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STAGES = ("queue", "compute_input", "compute_infer", "compute_output", "publish")


@dataclass
class Ledger:
    """When each stage of a request ended; times are ``time.monotonic_ns``.

    queue: from receipt to the worker; compute_input: decoding; compute_infer: the engine; compute_output: encoding;
    publish: from the encoded reply to the broker's confirmation.
    """

    received: int = field(default_factory=time.monotonic_ns)
    stages: dict[str, int] = field(default_factory=dict)  # nanoseconds
    source_unix_us: int | None = None  # the sender's clock when it sent, where it said so
    _last: int = 0

    def stamp(self, stage: str) -> None:
        """Ends ``stage`` now; it began where the one before it ended."""
        now = time.monotonic_ns()
        self.stages[stage] = now - (self._last or self.received)
        self._last = now

    @property
    def total_ns(self) -> int:
        """From receipt to the last stamp."""
        return (self._last or self.received) - self.received

    def as_parameters(self) -> dict[str, Any]:
        """``queue_us`` and so on for a reply; whole microseconds."""
        parameters: dict[str, Any] = {f"{s}_us": ns // 1000 for s, ns in self.stages.items() if s != "publish"}
        parameters["total_us"] = self.total_ns // 1000
        if self.source_unix_us is not None:
            parameters["source_to_publish_us"] = max(0, time.time_ns() // 1000 - self.source_unix_us)
        return parameters


@dataclass
class Request:
    """One input on its way. ``answer(payload, content_type, request)`` takes the reply, from any thread: once, and
    once more with an error where the first could not be sent.
    """

    payload: bytes
    model: str
    answer: Callable[[bytes, str, Request], None]
    content_type: str | None = None
    id: str | None = None
    source: str = ""  # who sent it, for latest_per_source: the topic
    deadline: int | None = None  # time.monotonic_ns
    ledger: Ledger = field(default_factory=Ledger)
    refused: bool = False  # its reply is an error

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic_ns() > self.deadline
