"""``int8d-make rollout``: which devices take a release, when, and how it fares there."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.commands import connection
from models.commands import signing
from models.commands.publish import ROLLOUT

if TYPE_CHECKING:
    from agent.updates.status import Status


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

    status = actions.add_parser(
        "status", help="how it fares in the fleet, as the devices say over MQTT", epilog=STATUS_EPILOG,
    )  # fmt: skip
    signing.add_release(status)
    status.add_argument("--repo", type=Path, metavar="DIR", help="tells whose turn it is, and the abort threshold")
    status.add_argument("--keys", type=Path, metavar="DIR", help="with --repo: its root.json is enough to read it")
    status.add_argument("--abort", action="store_true", help="stop the rollout where the threshold is reached")
    status.add_argument(
        "--abort-threshold", type=float, metavar="SHARE", help="of failed devices (default: as it was published; 0.1)"
    )
    status.add_argument("--wait", type=float, default=2.0, metavar="S", help="seconds to listen (default 2)")
    status.add_argument("--json", action="store_true", help="print JSON")
    connection.add_arguments(status)


STATUS_EPILOG = """exit status: 0; 3 where the share of devices that went back has reached the abort threshold; 2 where
that can't be told. --abort needs --repo, and the keys that sign."""
EXCEEDED = 3


def run(args: argparse.Namespace) -> int:
    if args.action == "status":
        return _status(args)
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


def _status(args: argparse.Namespace) -> int:
    from agent.errors import Int8dError
    from models.repository.fleet import as_text, count
    from models.repository.rollout import abort, described, threshold

    if (args.repo is None) != (args.keys is None) or (args.abort and args.repo is None):
        raise Int8dError("give --repo and --keys, or neither; --abort takes both")
    limit = None if args.abort_threshold is None else threshold(args.abort_threshold)
    release = None
    if args.repo is not None:
        with signing.writing(args) as repository:
            release = repository.find(args.name, args.release, args.device_group).release
    found = count(_heard(args), args.name, args.release, release, time.time(), limit)
    if not found.devices:
        raise Int8dError(f"no device says anything of model '{args.name}': is --prefix {args.prefix} theirs?")
    print(msgspec.json.encode(found).decode() if args.json else as_text(found))
    if found.exceeded and args.abort and not found.aborted:
        with signing.writing(args) as repository:
            release = abort(repository, repository.find(args.name, args.release, args.device_group))
        if not args.json:
            print(f"{args.name} release {args.release}: {described(release.rollout, time.time())}")
    return EXCEEDED if found.exceeded else 0


def _heard(args: argparse.Namespace) -> list[Status]:
    """What the devices say of their models; who can't be understood is left out."""
    from agent.telemetry.fleet_table import Fleet
    from agent.updates.status import every

    fleet = Fleet(args.prefix)
    with connection.listening(args, "rollout", [(every(args.prefix), 1)], fleet.update):
        time.sleep(args.wait)
    said = (status for device in fleet.devices().values() for status in device.updates.values())
    return [status for status in said if status is not None]
