"""``int8d-make rollout``: which devices take a release, and when."""

from __future__ import annotations

import argparse
import time

from models.commands import signing
from models.commands.publish import ROLLOUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    change = actions.add_parser("set", help="give a release other stages; takes up one that was aborted")
    signing.add_release(change)
    change.add_argument("--stages", required=True, metavar="SPEC", help=ROLLOUT.replace(" (default 100%%)", ""))
    change.add_argument(
        "--abort-threshold", type=float, metavar="SHARE", help="of failed devices (default: as it was published)"
    )
    signing.add_arguments(change)
    signing.add_expiry(change)

    abort = actions.add_parser("abort", help="no further device takes it; those that have it keep it")
    signing.add_release(abort)
    signing.add_arguments(abort)
    signing.add_expiry(abort)


def run(args: argparse.Namespace) -> int:
    with signing.writing(args) as repository:
        from models.repository.rollout import abort, described, set_stages, stages

        entry = repository.find(args.name, args.release, args.device_group)
        now = time.time()
        if args.action == "abort":
            release = abort(repository, entry)
        else:
            release = set_stages(repository, entry, stages(args.stages, now), args.abort_threshold)
        print(f"{args.name} release {args.release}: {described(release.rollout, now)}")
    return 0
