"""What docs/updates.md shows, played again.

python -m tests.updates tables                   # of reasons, attacks, power cuts and kills, into the document; minutes
python -m tests.updates swaps                    # 1,000 updates under traffic, into the document; 30 minutes
python -m tests.updates swaps --count 20 --dry   # fewer, and only printed
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.updates import attacks, cuts, kills, swaps
from tests.updates.tables import reasons_table, write


def main() -> int:
    """Returns 0 where all of it holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.updates")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables", help="of reasons, attacks, power cuts and kills")
    many = commands.add_parser("swaps", help="updates back to back under traffic")
    many.add_argument("--count", type=int, default=1000)
    many.add_argument("--rate", type=float, default=100.0, help="messages a second")
    many.add_argument("--dry", action="store_true", help="leave the document as it is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return _tables(Path(name)) if args.command == "tables" else _swaps(Path(name), args)


def _tables(folder: Path) -> int:
    write("reasons", reasons_table())
    all_hold = True
    for what, report in (("attacks", attacks.report), ("cuts", cuts.report), ("kills", kills.report)):
        (folder / what).mkdir()
        text, holds = report(folder / what)
        print(text, "" if holds else f"\nnot all {what} end as they must", sep="\n", flush=True)
        write(what, text)
        all_hold &= holds
    return 0 if all_hold else 1


def _swaps(folder: Path, args: argparse.Namespace) -> int:
    result = swaps.swaps(folder, args.count, args.rate, progress=True)
    text = swaps.report(result, args.rate)
    print(text, *result.wrong[:5], sep="\n")
    if not args.dry:
        write("swaps", text)
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
