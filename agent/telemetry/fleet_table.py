"""What the devices under a prefix say of themselves, as the two tables of ``int8d watch``: what they do, and where
their updates stand.

Everybody who may write to a topic is heard, so nothing here believes a payload: what is not as it should be counts as
not said, and what would move a terminal's cursor is not shown.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from agent.telemetry.fleet import merge
from agent.updates import status
from agent.updates.status import Status

COLUMNS = ("device", "state", "model", "version", "backend", "answered", "refused", "p50", "p99", "memory")
UPDATE_COLUMNS = ("device", "model", "version", "release", "update", "to", "bytes", "reason")
_CELL = 40  # characters
Row = tuple[str, ...]


class Device(msgspec.Struct):
    """stats: the document, of whatever kind it is; None where there is none. updates: by model; None: not readable."""

    available: str = "unknown"
    stats: Any = None
    updates: dict[str, Status | None] = {}


class Fleet:
    """The last that each device said. Safe to call from any thread."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}

    @property
    def topics(self) -> list[tuple[str, int]]:
        """What to subscribe to, and at which QoS."""
        return [(f"{self._prefix}/+/available", 1), (f"{self._prefix}/+/stats", 0), (status.every(self._prefix), 1)]

    def update(self, topic: str, payload: bytes) -> None:
        """Takes a message of ``topics``."""
        name, _, what = topic.removeprefix(self._prefix + "/").partition("/")
        with self._lock:
            device = self._devices.setdefault(name, Device())
            if what == "available":
                device.available = payload.decode(errors="replace")
            elif what == "stats":
                device.stats = _parsed(payload)
            elif not payload:  # taken back
                device.updates.pop(status.place(topic, self._prefix)[1], None)
            else:
                device.updates[status.place(topic, self._prefix)[1]] = status.parse(topic, payload, self._prefix)

    def devices(self) -> dict[str, Device]:
        """By name."""
        with self._lock:
            return {name: Device(d.available, d.stats, dict(d.updates)) for name, d in sorted(self._devices.items())}


def rows(devices: dict[str, Device]) -> list[Row]:
    """A row a device and model, as ``COLUMNS``."""
    table = []
    for name, device in devices.items():
        stats = _table(device.stats)
        counters = _table(stats.get("counters"))
        for model, told in (_table(stats.get("models")) or {"-": {}}).items():
            about = _table(told)
            total = _table(_table(_table(stats.get("latency_us")).get(model)).get("total"))
            table.append(_row(
                name, device.available, model, about.get("version", "-"), _backend(about),
                total.get("count", 0), counters.get("refused", "-"),
                *(f"{_number(total[p]) / 1000:.2f} ms" if p in total else "-" for p in ("p50", "p99")),
                f"{_number(stats.get('resident_bytes')) / 1e6:.0f} MB",
            ))  # fmt: skip
    return table


def fleet_row(devices: dict[str, Device]) -> Row:
    """All devices and models together. Percentiles are those of all requests, from the histograms merged."""
    online = sum(device.available == "online" for device in devices.values())
    documents = [device.stats for device in devices.values()]
    fleet = merge(documents)
    total = fleet.total()
    found = [f"{ns / 1e6:.2f} ms" if total.total else "-" for ns in total.percentiles(50, 99)]
    memory = sum(_number(_table(d).get("resident_bytes")) for d in documents)
    return _row("all", f"{online} online", "-", "-", "-", total.total, fleet.counters.get("refused", 0), *found,
                f"{memory / 1e6:.0f} MB")  # fmt: skip


def update_rows(devices: dict[str, Device]) -> list[Row]:
    """A row a device and model that has updates, as ``UPDATE_COLUMNS``.

    version: as ``stats`` tells it. release: that is served; 0 is the file that int8d.toml names. to: what the
    update is about, or what is due. reason: the code for which the last update went back; or, with ``check:`` in front,
    why the repository can't be asked.
    """
    table = []
    for name, device in devices.items():
        models = _table(_table(device.stats).get("models"))
        for model, said in sorted(device.updates.items()):
            version = _table(models.get(model)).get("version", "-")
            if said is None:
                table.append(_row(name, model, version, "?", "?", "-", "-", "not readable"))
                continue
            target = said.target if said.job == "IN_PROGRESS" else said.available or said.target
            table.append(_row(
                name, model, version, said.serving.release, said.state, "-" if target is None else target.release,
                f"{status.percent(said)} %" if said.bytes else "-", reason(said),
            ))  # fmt: skip
    return table


def reason(said: Status) -> str:
    """What is wrong, in codes; "-" for nothing."""
    if said.repository is not None:
        return f"check: {said.repository.code}"
    return said.reason.code if said.reason is not None and said.state == "rolled_back" else "-"


def _backend(about: dict[str, Any]) -> Any:
    """The instruction set where all is native, else the backend."""
    backend = about.get("backend", "-")
    return about.get("isa", backend) if backend == "native" else backend


def _row(*cells: object) -> Row:
    return tuple("".join(c if c.isprintable() else "?" for c in str(cell)[:_CELL]) for cell in cells)


def _parsed(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return value if type(value) in (int, float) and abs(value) < 1e18 else 0
