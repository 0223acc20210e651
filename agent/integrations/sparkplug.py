"""The device as a Sparkplug B edge node (Eclipse Sparkplug 3.0): born with all its metrics, then what changes.

A connection has one will, and the agent's says ``offline`` on its own topic; NDEATH is another connection's, which
starts clean each time, as Sparkplug demands. Metrics are the scalars of the ``stats`` document, by their path in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.files import write_atomically
from agent.integrations.sparkplug_b import BOOLEAN, DOUBLE, INT64, Metric, Value, datatype, encode, wants
from agent.mqtt.messages import Incoming, Outgoing, Settings
from agent.mqtt.session import Session

log = logging.getLogger(__name__)
REBIRTH = "Node Control/Rebirth"
WRITTEN = ("NBIRTH", "NDEATH", "NDATA")
_LEFT_OUT = ("histograms_ns",)  # no scalars
_MOST = 2000  # metrics
_DEATH_TIMEOUT_S = 2.0


class EdgeNode:
    """Keeps an edge node alive from ``start`` to ``stop``. ``update`` it with each ``stats`` document, once before.

    state: a folder, where the number of the last session is kept.
    """

    def __init__(self, broker: Settings, client_id: str, group: str, node: str, state: Path) -> None:
        self._topics = {kind: topic(group, kind, node) for kind in (*WRITTEN, "NCMD")}
        self._file = state / "sparkplug-bdseq"
        self._lock = threading.RLock()  # publications stay in the order of their numbers
        self._session_number = _read_number(self._file)  # Sparkplug's bdSeq: 0..255, one a CONNECT
        self._seq = 0
        self._born: dict[str, int] | None = None  # datatypes by name, of what this connection's birth has told
        self._told: dict[str, Value | None] = {}
        self._now: dict[str, Value] = {}
        self._aliases: dict[str, int] = {}
        self._session = Session(
            broker, client_id, [(self._topics["NCMD"], 1)], self._receive, self._birth, self._death, clean=True
        )

    def start(self) -> None:
        """Connects, in the background."""
        self._session.start()

    def stop(self) -> None:
        """Says that it dies, and disconnects."""
        if self._session.connected:
            told = threading.Event()
            with self._lock:
                self._born = None
                self._session.publish(self._ndeath(), lambda reason: told.set())
            told.wait(_DEATH_TIMEOUT_S)
        self._session.stop()

    def update(self, document: bytes) -> None:
        """Publishes what has changed, or a new birth where there is something of which the last one did not tell."""
        now = dict(flatten(msgspec.json.decode(document)))
        with self._lock:
            self._now = now
            if self._born is None or not self._session.connected:
                return
            if any(self._born.get(name) not in (datatype(v), _widened(v)) for name, v in now.items()):
                self._birth()
            else:
                self._data()

    def _death(self) -> Outgoing:
        """The will of the connection that is about to be made."""
        with self._lock:
            self._session_number = (self._session_number + 1) % 256
            self._born = None  # until this connection's birth
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, f"{self._session_number}\n".encode())
            except OSError as e:
                log.warning("%s can't be written: %s", self._file, e.strerror)
            return self._ndeath()

    def _ndeath(self) -> Outgoing:
        return Outgoing(self._topics["NDEATH"], encode([self._number(now := _now_ms())], now, None), 1, False)

    def _number(self, now: int) -> Metric:
        return Metric(self._session_number, now, "bdSeq", datatype=INT64)

    def _birth(self) -> None:
        """All metrics with names, aliases, types and values; on every connection, and when a host asks for it."""
        with self._lock:
            now = _now_ms()
            metrics = [self._number(now), Metric(False, now, REBIRTH, datatype=BOOLEAN)]
            for name, value in self._now.items():
                alias = self._aliases.setdefault(name, len(self._aliases) + 1)
                metrics.append(Metric(value, now, name, alias, datatype(value)))
            self._seq, self._told = 0, dict(self._now)
            self._born = {name: datatype(value) for name, value in self._now.items()}
            self._session.publish(Outgoing(self._topics["NBIRTH"], encode(metrics, now, 0), 0, False))

    def _data(self) -> None:
        assert self._born is not None
        changed: dict[str, Value | None] = {n: v for n, v in self._now.items() if self._told.get(n) != v}
        changed |= {n: None for n, v in self._told.items() if v is not None and n not in self._now}
        if not changed:
            return
        now = _now_ms()
        metrics = [
            Metric(float(v) if self._born[n] == DOUBLE and v is not None else v, now, alias=self._aliases[n])
            for n, v in changed.items()
        ]
        self._told |= changed
        self._seq = (self._seq + 1) % 256
        self._session.publish(Outgoing(self._topics["NDATA"], encode(metrics, now, self._seq), 0, False))

    def _receive(self, message: Incoming) -> None:
        """A command; the only one taken is for a rebirth."""
        try:
            if wants(message.payload, REBIRTH):
                log.info("a Sparkplug host asks for a rebirth")
                self._birth()
        except ValueError as e:
            log.warning("a Sparkplug command that can't be read: %s", e)
        finally:
            self._session.done(message)


def topic(group: str, kind: str, node: str) -> str:
    """Where an edge node's messages of a kind go."""
    return f"spBv1.0/{group}/{kind}/{node}"


def flatten(document: Mapping[str, Any]) -> list[tuple[str, Value]]:
    """The scalars of a document with their paths, ``counters/received``; no lists, no nulls."""
    found: list[tuple[str, Value]] = []
    rest = [("", document)]
    for path, table in rest:
        for key, value in table.items():
            if isinstance(value, dict):
                if key not in _LEFT_OUT:
                    rest.append((f"{path}{key}/", value))
            elif isinstance(value, bool | float | str) or (isinstance(value, int) and -(2**63) <= value < 2**63):
                found.append((f"{path}{key}", value))
    return found[:_MOST]


def _widened(value: Value) -> int:
    """The type of a metric that can carry a value: what was born a double may come to be whole."""
    return DOUBLE if isinstance(value, int) and not isinstance(value, bool) else datatype(value)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _read_number(file: Path) -> int:
    """The last session's, so that the next one's is one more; -1 before the first."""
    try:
        return int(file.read_text()) % 256
    except (OSError, ValueError):
        return -1
