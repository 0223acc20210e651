"""What must hold under fire, at full length: ``python -m tests.fire overload``; see docs/under-fire.md.

A line of JSON for each scenario; ends with 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.fire import deadlines, hostile, overload, poison, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire", description=__doc__)
    scenarios = parser.add_subparsers(dest="scenario", required=True)
    load = scenarios.add_parser("overload")
    load.add_argument("policy", nargs="*", choices=[*overload.POLICIES, []], help="default: all")
    load.add_argument("--seconds", type=float, default=60.0)
    load.add_argument("--receive-maximum", type=int, default=65_535)
    bad_payloads = scenarios.add_parser("hostile")
    bad_payloads.add_argument("--from", type=int, default=0, dest="first")
    bad_payloads.add_argument("--count", type=int, default=1_000_000)
    bad_payloads.add_argument("--per-s", type=float, default=100_000, help="messages a second at most")
    day = scenarios.add_parser("soak")
    day.add_argument("--messages", type=int, default=soak.MESSAGES)
    day.add_argument("--per-s", type=float, default=5000, help="messages a second at most")
    for name in ("crash", "hang"):
        scenarios.add_parser(name)
    late = scenarios.add_parser("deadline")
    late.add_argument("--deadline", type=int, default=10, help="seconds")
    late.add_argument("--job", type=float, default=90.0, help="seconds")
    args = parser.parse_args()
    bad = 0
    if args.scenario == "overload":
        for policy in args.policy or overload.POLICIES:
            figures = overload.overload(policy, args.seconds, args.receive_maximum)
            bad += _show(figures, overload.failures(figures))
    elif args.scenario == "hostile":
        figures = hostile.hostile(args.first, args.count, per_s=args.per_s, say=_say)
        bad += _show(figures, hostile.failures(figures))
    elif args.scenario == "soak":
        figures = soak.soak(args.messages, args.per_s, _say)
        bad += _show(figures, soak.failures(figures))
    elif args.scenario == "deadline":
        figures = deadlines.deadline(args.deadline, args.job)
        bad += _show(figures, deadlines.failures(figures))
    else:
        figures = poison.poison(args.scenario, bad=3)
        bad += _show(figures, poison.failures(figures))
    return 1 if bad else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _show(figures: dict[str, object], failures: list[str]) -> int:
    print(json.dumps(figures | {"failures": failures}), flush=True)
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
