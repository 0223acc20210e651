"""Faults by a fixed seed, and what they cost: ``python -m tests.chaos``; see docs/chaos.md.

Runs the named scenarios, or all, and prints a table. Ends with 1 where anything was lost or wrong. What each run wrote
(ids, replies, faults, logs, evidence) stays in build/chaos/SCENARIO.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.table import table
from tests.chaos.checker import Verdict
from tests.chaos.scenarios import SCENARIOS, CannotRun, run

_FOLDER = Path(__file__).parents[2] / "build" / "chaos"
_HEAD = ("scenario", "faults", "sent", "answered", "twice", "refused", "wrong", "lost", "longest silence",
         "longest recovery")  # fmt: skip


def _row(name: str, verdict: Verdict) -> list[object]:
    faults = ", ".join(f"{count} {what}" for what, count in sorted(verdict.faults.items()))
    refused = ", ".join(f"{count} {code}" for code, count in sorted(verdict.refused.items())) or 0
    return [name, faults, verdict.sent, verdict.answered, verdict.duplicates, refused, verdict.wrong, verdict.lost,
            f"{verdict.silence_s:.2f} s", f"{verdict.recovery_s:.2f} s"]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"default: all of {', '.join(SCENARIOS)}")
    parser.add_argument("--kills", type=int, metavar="N", help="faults in each scenario (default: its own number)")
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second (default: 200)")
    parser.add_argument("--seed", type=int, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="print a line of JSON a scenario in place of the table")
    args = parser.parse_args()
    for name in args.scenario:
        if name not in SCENARIOS:
            parser.error(f"no scenario '{name}'; there are: {', '.join(SCENARIOS)}")
    rows, skipped, failed = [], [], False
    for name in args.scenario or SCENARIOS:
        start, folder = time.monotonic(), _FOLDER / name
        try:
            verdict, problems = run(name, folder, args.seed, args.rate, args.kills)
        except CannotRun as e:
            skipped.append(f"{name} was skipped: {e}")
            print(f"chaos: {skipped[-1]}", file=sys.stderr, flush=True)
            continue
        (folder / "evidence").write_text("".join(line + "\n" for line in [*problems, *verdict.evidence]))
        holds = verdict.holds and not problems
        failed |= not holds
        rows.append(_row(name, verdict))
        if args.json:
            document: dict[str, Any] = {"scenario": name, "seed": args.seed, "rate": args.rate, "holds": holds}
            print(json.dumps(document | {"problems": problems} | verdict.as_json()), flush=True)
        print(f"chaos: {name}: {'holds' if holds else f'FAILED, see {folder}/evidence'}, "
              f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
        for problem in problems:
            print(f"chaos: {name}: {problem}", file=sys.stderr, flush=True)
    if not args.json:
        print("\n".join([*table(_HEAD, rows), *skipped]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
