"""A message that a client has sent: while it has no answer, and what may become of it."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

import msgspec

from agent.errors import Int8dError

NEVER = math.inf


class NoAnswer(Int8dError):
    """No reply came in time."""


class WindowFull(Int8dError):
    """``max_in_flight`` messages are unanswered, and the caller would not wait, or waited in vain."""


class Closed(Int8dError):
    """The client was stopped before the answer came."""


class Refused(Int8dError):
    """The agent answered with an error. code: see docs/protocol.md. reply: its payload."""

    def __init__(self, code: str, message: str, reply: bytes) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.reply = code, message, reply


class Reply(NamedTuple):
    """An answer. round_trip_ns: from the first sending to it. attempts: how often the message was sent."""

    payload: bytes
    round_trip_ns: int
    id: str
    attempts: int

    @property
    def document(self) -> dict[str, Any]:
        """The payload, decoded."""
        decoded: dict[str, Any] = msgspec.json.decode(self.payload)
        return decoded


class Call:
    """A message without an answer. due: when to send it next, of ``time.monotonic``."""

    __slots__ = ("attempts", "content_type", "deadline", "delay", "due", "future", "model", "name", "payload",
                 "refusal", "retry", "sealed", "sent_ns", "spooled", "taken", "unwanted")  # fmt: skip

    def __init__(
        self, name: str, model: str, payload: bytes, content_type: str | None, timeout: float | None, retry: float
    ) -> None:
        self.name, self.model, self.payload, self.content_type = name, model, payload, content_type
        self.deadline = NEVER if timeout is None else time.monotonic() + timeout
        self.retry = self.delay = retry
        self.future: Future[Reply] = Future()
        self.due = NEVER
        self.attempts = self.sent_ns = 0
        self.taken = False  # the broker has confirmed the last copy
        self.spooled: int | None = None  # its number in the spool
        self.unwanted: str | None = None  # why the broker does not take it
        self.refusal: Refused | None = None  # the last, where that is no reason to give up
        self.sealed = ("", b"")  # topic and encrypted payload, the same for each copy


class ErrorBody(msgspec.Struct):
    """The ``error`` of a refusal."""

    code: str
    message: str = ""


class _Refusal(msgspec.Struct):
    error: ErrorBody | None = None


def error_of(payload: bytes) -> ErrorBody | None:
    """The error that a reply consists of, if it does."""
    if b'"error"' not in payload[:4096]:
        return None
    try:
        return msgspec.json.decode(payload, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
