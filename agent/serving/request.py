"""What passes between a transport and the serving code: bytes in, bytes out, and the ledger of the way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from agent.serving.lane import MAX_PRIORITY

STAGES = ("queue", "compute_input", "compute_infer", "compute_output", "publish")
_AFTER = dict(itertools.pairwise(STAGES))


@dataclass(slots=True)
class Ledger:
    """When each stage of a request ended; times are ``time.monotonic_ns``.

    queue: from receipt to the worker; compute_input: decoding; compute_infer: the engine; compute_output: encoding;
    publish: from the encoded reply to the broker's confirmation.
    """

    received: int = field(default_factory=time.monotonic_ns)
    stages: dict[str, int] = field(default_factory=dict)  # nanoseconds
    source_unix_us: int | None = None  # the sender's clock when it sent, where it said so
    batch_size: int = 1  # requests that were computed together, this one among them
    _last: int = 0

    def stamp(self, stage: str) -> None:
        """Ends ``stage`` now; it began where the one before it ended."""
        now = time.monotonic_ns()
        self.stages[stage] = now - (self._last or self.received)
        self._last = now

    @property
    def stage(self) -> str:
        """The stage under way."""
        stages = self.stages
        return _AFTER.get(next(reversed(stages)), STAGES[-1]) if stages else STAGES[0]

    @property
    def total_ns(self) -> int:
        """From receipt to the last stamp."""
        return (self._last or self.received) - self.received

    def as_parameters(self) -> dict[str, Any]:
        """``queue_us`` and so on for a reply; whole microseconds."""
        parameters: dict[str, Any] = {f"{s}_us": ns // 1000 for s, ns in self.stages.items() if s != "publish"}
        parameters["total_us"] = self.total_ns // 1000
        parameters["batch_size"] = self.batch_size
        if self.source_unix_us is not None:
            parameters["source_to_publish_us"] = max(0, time.time_ns() // 1000 - self.source_unix_us)
        return parameters


@dataclass(slots=True, weakref_slot=True, eq=False)
class Request:
    """One input on its way. ``answer(payload, content_type, request)`` is called once, from any thread, by ``reply``.

    digest names the input for the strikes: the same bytes for the same model have the same one. refusal: the code of
    the error that its reply is, or None. sealed: where it came encrypted, its bytes as they came, and the correlation
    that they are bound to.
    """

    payload: bytes
    model: str
    answer: Callable[[bytes, str, Request], None]
    content_type: str | None = None
    id: str | None = None
    source: str = ""  # who sent it, for latest_per_source: the topic
    deadline: int | None = None  # time.monotonic_ns
    priority: int = 0  # the higher, the sooner
    digest: bytes = b""
    ledger: Ledger = field(default_factory=Ledger)
    refusal: str | None = None
    place: Any = None  # where it waits; kept by Admission
    sealed: tuple[bytes, bytes | None] | None = None
    _open: list[None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        if not self.digest:
            self.digest = digest(self.payload, self.model, self.content_type)

    def wish(self, timeout_us: int | None, priority: int | None) -> None:
        """Takes over what its sender asks for: an answer within ``timeout_us`` of its receipt (0 and None: whenever;
        below zero: too late already), and how soon it is to be served.
        """
        if priority is not None:
            self.priority = min(max(priority, 0), MAX_PRIORITY)
        if timeout_us:
            self.deadline = self.ledger.received + max(0, timeout_us) * 1000

    def settle(self) -> bool:
        """Whether the caller is the first to answer it, and so the one who may. Atomic."""
        try:
            self._open.pop()
        except IndexError:
            return False
        return True

    def reopen(self) -> None:
        """Lets one more answer through, because the first could not be sent."""
        self._open.append(None)

    @property
    def settled(self) -> bool:
        """Whether somebody has answered it."""
        return not self._open

    def reply(self, payload: bytes, content_type: str) -> bool:
        """Answers it, unless somebody has; whether it did."""
        if not self.settle():
            return False
        self.answer(payload, content_type, self)
        return True

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic_ns() > self.deadline


def digest(payload: bytes, model: str, content_type: str | None) -> bytes:
    """16 bytes that name an input."""
    h = blake2b(payload, digest_size=16)
    h.update(f"\0{model}\0{content_type}".encode(errors="surrogatepass"))
    return h.digest()
