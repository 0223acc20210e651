"""Structured logs: one JSON object a line on stdout."""

from __future__ import annotations

import logging
import sys
import time

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
    """Lets one event of a kind through in ``seconds``, and counts the rest."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: dict[str, tuple[float, int]] = {}

    def since(self, kind: str) -> int | None:
        """How many were held back since the last that was let through; None: hold this one back, too."""
        at, held = self._last.get(kind, (-self._seconds, 0))
        now = time.monotonic()
        if now - at < self._seconds:
            self._last[kind] = (at, held + 1)
            return None
        self._last[kind] = (now, 0)
        return held


def to_stdout(level: str) -> None:
    """Sends all logs of ``level`` and above to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
