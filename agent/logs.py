"""Structured logs: one JSON object a line on stdout."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import msgspec


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(body).decode()


class Sparing:
    """Lets one event of a kind through in ``seconds``, and counts the rest. clock: seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._last: dict[str, tuple[float, int]] = {}

    def due(self, kind: str, count: int = 1) -> int:
        """How many to tell of: these, and those that were held back since the last time; 0: hold these back, too."""
        at, held = self._last.get(kind, (-self._seconds, 0))
        now = self._clock()
        if now - at < self._seconds:
            self._last[kind] = (at, held + count)
            return 0
        self._last[kind] = (now, 0)
        return held + count

    def line(self, kind: str, text: str) -> str:
        """``text``, and how many of its kind were held back before it; empty: hold it back, too."""
        due = self.due(kind)
        return text + (f" ({due - 1} more since the last that was logged)" if due > 1 else "") if due else ""


def to_stdout(level: str) -> None:
    """Sends all logs of ``level`` and above to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
