"""``int8d watch``: devices, models and latencies, and where updates stand, from the retained topics.

In the first table the last row is all devices together; the second one is there where a device has updates.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import msgspec

from agent.commands import connection
from agent.errors import Int8dError
from agent.telemetry.fleet_table import COLUMNS, UPDATE_COLUMNS, Fleet, Row, fleet_row, rows, update_rows

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print what is there, and end")
    parser.add_argument("--wait", type=float, default=1.0, help="with --once: seconds to listen (default: 1)")
    parser.add_argument("--json", action="store_true", help="with --once: print JSON")
    connection.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    fleet = Fleet(args.prefix)
    with connection.listening(args, "watch", fleet.topics, fleet.update):
        if args.once:
            time.sleep(args.wait)
            _print_once(fleet, args.json)
        else:
            _live(fleet)
    return 0


def _print_once(fleet: Fleet, as_json: bool) -> None:
    devices = fleet.devices()
    if as_json:
        print(msgspec.json.encode(devices).decode())
        return
    _print([COLUMNS, *rows(devices), fleet_row(devices)])
    if updates := update_rows(devices):
        print()
        _print([UPDATE_COLUMNS, *updates])


def _print(table: list[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _live(fleet: Fleet) -> None:
    try:
        from rich.live import Live
    except ImportError as e:
        raise Int8dError("the live table needs rich: pip install 'int8d[demo]', or use --once") from e
    with Live(_shown(fleet), refresh_per_second=2) as live:
        while True:
            time.sleep(0.5)
            live.update(_shown(fleet))


def _shown(fleet: Fleet) -> Group:
    from rich.console import Group

    devices = fleet.devices()
    shown = _table(COLUMNS)
    for row in rows(devices):
        _add(shown, row, dim=row[1] != "online")
    shown.add_section()
    _add(shown, fleet_row(devices))
    updates = _table(UPDATE_COLUMNS)
    for row in update_rows(devices):
        _add(updates, row, dim=devices[row[0]].available != "online" if row[0] in devices else False)
    return Group(shown, updates) if updates.row_count else Group(shown)


def _table(columns: Row) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns


def _add(table: Table, row: Row, dim: bool = False) -> None:
    from rich.text import Text

    table.add_row(*map(Text, row), style="dim" if dim else None)  # as Text, brackets are no markup
