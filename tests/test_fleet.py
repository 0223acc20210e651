"""What a fleet's retained topics say of it: ``int8d watch`` and its tables, whatever lies on the topics."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import msgspec
import pytest

from agent.commands import watch
from agent.telemetry.fleet_table import Device, Fleet, fleet_row, rows, update_rows
from agent.updates.status import Reason, Status, Version
from tests.test_cli import int8d

OLD, NEW = Version(7, "a" * 64), Version(8, "b" * 64)


def topic(device: str, model: str = "digits") -> str:
    return f"int8d/{device}/v2/repository/models/{model}/status"


def said(device: str, **about: Any) -> bytes:
    return msgspec.json.encode(Status(device=device, model="digits", **about))


FETCHING = {"state": "fetching", "job": "IN_PROGRESS", "serving": OLD, "target": NEW, "bytes": 800, "bytes_done": 504}
BACK = {"state": "rolled_back", "job": "FAILED", "serving": OLD, "target": NEW, "reason": Reason("hung", "60 s")}


def test_each_device_and_model_has_a_row_that_says_what_runs_and_where_its_update_stands() -> None:
    fleet = Fleet("int8d")
    fleet.update("int8d/box1/stats", b'{"models": {"digits": {"version": "1.4"}}}')
    fleet.update(topic("box1"), said("box1", **FETCHING))
    fleet.update(topic("box2"), said("box2", **BACK))
    fleet.update(topic("box3"), said("box3", serving=NEW, state="committed", repository=Reason("expired", "frozen")))
    fleet.update(topic("box4"), said("box4"))
    assert update_rows(fleet.devices()) == [
        ("box1", "digits", "1.4", "7", "fetching", "8", "63 %", "-"),
        ("box2", "digits", "-", "7", "rolled_back", "8", "-", "hung"),
        ("box3", "digits", "-", "8", "committed", "-", "-", "check: expired"),
        ("box4", "digits", "-", "0", "idle", "-", "-", "-"),
    ]


def test_a_status_that_is_taken_back_is_gone() -> None:
    fleet = Fleet("int8d")
    fleet.update(topic("box1"), said("box1", **FETCHING))
    fleet.update(topic("box1"), b"")
    assert update_rows(fleet.devices()) == []


@pytest.mark.parametrize("payload", [
    b"\xff", b"{", b"[" * 100_000, b"7", b"null", b'{"device": "box1"}', said("box2"),
    b'{"device": "box1", "model": "digits", "state": "exploded"}',
    b'{"device": "box1", "model": "digits", "serving": {"release": "7"}}',
])  # fmt: skip
def test_what_is_no_status_of_its_topic_is_said_not_to_be_readable(payload: bytes) -> None:
    fleet = Fleet("int8d")
    fleet.update(topic("box1"), payload)
    assert update_rows(fleet.devices()) == [("box1", "digits", "-", "?", "?", "-", "-", "not readable")]


@pytest.mark.parametrize("document", [
    7, "x", [1], {"models": 3}, {"models": {"m": 4}}, {"models": {"m": {"version": {}, "backend": 1}}},
    {"models": {"m": {}}, "latency_us": {"m": {"total": {"p50": "9", "p99": 1e300, "count": []}}}},
    {"models": {"m": {}}, "counters": [], "resident_bytes": "many", "latency_us": {"m": [1]}},
])  # fmt: skip
def test_a_strangers_stats_break_no_table(document: Any) -> None:
    devices = {"box1": Device("online", document)}
    assert all(len(row) == len(watch.COLUMNS) for row in (*rows(devices), fleet_row(devices)))


def test_what_a_stranger_says_moves_no_cursor_and_is_no_markup() -> None:
    rich = pytest.importorskip("rich.console")
    fleet = Fleet("int8d")
    fleet.update("int8d/\x1b[2J[red]/available", b"\x1b[31m[/bold] online\r\n" + b"x" * 1000)
    fleet.update(topic("[red]"), said("[red]", repository=Reason("\x1b]0;owned\x07" * 9, "")))
    out = StringIO()
    rich.Console(file=out, width=200).print(watch._shown(fleet))
    assert "\x1b" not in out.getvalue()
    assert "[red]" in out.getvalue()
    assert "[/bold]" in out.getvalue()


def test_the_table_of_updates_fits_eighty_columns() -> None:
    rich = pytest.importorskip("rich.console")
    fleet = Fleet("int8d")
    fleet.update(topic("box1"), said("box1", **BACK | {"repository": Reason("unreachable", "")}))
    out = StringIO()
    rich.Console(file=out, width=80).print(watch._shown(fleet))
    (row,) = (line for line in out.getvalue().splitlines() if "rolled_back" in line)
    assert "check: unreachable" in row


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_watch_shows_retained_statuses(broker, peer, protocol: str) -> None:
    client = peer("unused")
    for where, payload in (
        ("int8d/box1/available", b"offline"),
        (topic("box1"), said("box1", **FETCHING)),
        (topic("box2"), b"nonsense"),
    ):
        client.client.publish(where, payload, 1, retain=True).wait_for_publish(10)
    options = ["--once", "--wait", 0.4, "--port", broker.port, "--protocol", protocol]
    lines = int8d("watch", *options).stdout.splitlines()
    below = lines[lines.index("") + 1 :]
    assert [line.split() for line in below] == [
        list(watch.UPDATE_COLUMNS),
        ["box1", "digits", "-", "7", "fetching", "8", "63", "%", "-"],
        ["box2", "digits", "-", "?", "?", "-", "-", "not", "readable"],
    ]
    found = json.loads(int8d("watch", *options, "--json").stdout)
    assert found["box1"]["available"] == "offline"
    assert found["box1"]["updates"]["digits"] == json.loads(said("box1", **FETCHING))
    assert found["box2"] == {"available": "unknown", "stats": None, "updates": {"digits": None}}
