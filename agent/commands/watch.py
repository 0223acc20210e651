"""``int8d watch``: devices, models and latencies, from the retained topics; the last row is all devices together."""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from typing import Any

import msgspec

from agent.commands import connection
from agent.errors import Int8dError
from agent.telemetry.fleet import merge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print what is there, and end")
    parser.add_argument("--wait", type=float, default=1.0, help="with --once: seconds to listen (default: 1)")
    parser.add_argument("--json", action="store_true", help="with --once: print JSON")
    connection.add_arguments(parser)


class Fleet:
    """What the devices under a prefix say of themselves."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._devices: dict[str, dict[str, Any]] = {}

    def update(self, topic: str, payload: bytes) -> None:
        """Takes an ``available`` or ``stats`` message."""
        device, _, what = topic.removeprefix(self._prefix + "/").partition("/")
        with self._lock:
            entry = self._devices.setdefault(device, {"available": "unknown", "stats": None})
            if what == "available":
                entry["available"] = payload.decode(errors="replace")
            else:
                try:
                    entry["stats"] = msgspec.json.decode(payload)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    entry["stats"] = None

    def devices(self) -> dict[str, dict[str, Any]]:
        """By name."""
        with self._lock:
            return {name: dict(entry) for name, entry in sorted(self._devices.items())}


def rows(devices: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row a device and model: device, state, model, version, backend, answered, refused, p50, p99, memory."""
    table = []
    for name, entry in devices.items():
        stats = entry["stats"] or {}
        counters = stats.get("counters", {})
        for model, about in (stats.get("models") or {"-": {}}).items():
            total = stats.get("latency_us", {}).get(model, {}).get("total", {})
            table.append((
                name, entry["available"], model, about.get("version", "-"),
                _backend(about),
                str(total.get("count", 0)), str(counters.get("refused", "-")),
                *(f"{total[p] / 1000:.2f} ms" if p in total else "-" for p in ("p50", "p99")),
                f"{stats.get('resident_bytes', 0) / 1e6:.0f} MB",
            ))  # fmt: skip
    return table


def fleet_row(devices: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """All devices and models together. Percentiles are those of all requests, from the histograms merged."""
    online = sum(entry["available"] == "online" for entry in devices.values())
    documents = [entry["stats"] for entry in devices.values()]
    fleet = merge(documents)
    total = fleet.total()
    found = [f"{ns / 1e6:.2f} ms" if total.total else "-" for ns in total.percentiles(50, 99)]
    memory = sum(d.get("resident_bytes", 0) for d in documents if isinstance(d, dict))
    return ("all", f"{online} online", "-", "-", "-", str(total.total), str(fleet.counters.get("refused", 0)), *found,
            f"{memory / 1e6:.0f} MB")  # fmt: skip


def _backend(about: dict[str, Any]) -> str:
    """The instruction set where all is native, else the backend."""
    backend = str(about.get("backend", "-"))
    return str(about.get("isa", backend)) if backend == "native" else backend


COLUMNS = ("device", "state", "model", "version", "backend", "answered", "refused", "p50", "p99", "memory")


def run(args: argparse.Namespace) -> int:
    from agent.mqtt.messages import Incoming
    from agent.mqtt.session import Session

    fleet = Fleet(args.prefix)

    def receive(message: Incoming) -> None:
        fleet.update(message.topic, message.payload)
        session.done(message)

    topics = [(f"{args.prefix}/+/available", 1), (f"{args.prefix}/+/stats", 0)]
    session = Session(connection.broker(args), f"int8d-watch-{uuid.uuid4().hex[:12]}", topics, receive, clean=True)
    session.start()
    try:
        if not session.wait_ready(10):
            raise Int8dError(f"no connection to {args.host}:{args.port} ({session.refusal or 'no answer'})")
        if args.once:
            time.sleep(args.wait)
            _print_once(fleet, args.json)
        else:
            _live(fleet)
    finally:
        session.stop()
    return 0


def _print_once(fleet: Fleet, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(fleet.devices()).decode())
        return
    devices = fleet.devices()
    table = [COLUMNS, *rows(devices), fleet_row(devices)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _live(fleet: Fleet) -> None:
    try:
        from rich import box
        from rich.live import Live
        from rich.table import Table
    except ImportError as e:
        raise Int8dError("the live table needs rich: pip install 'int8d[demo]', or use --once") from e

    def table() -> Table:
        shown = Table(*COLUMNS, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
        devices = fleet.devices()
        for row in rows(devices):
            shown.add_row(*row, style=None if row[1] == "online" else "dim")
        shown.add_section()
        shown.add_row(*fleet_row(devices))
        return shown

    with Live(table(), refresh_per_second=2) as live:
        while True:
            time.sleep(0.5)
            live.update(table())
