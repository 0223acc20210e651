"""``int8d-make repo``: what keeps a repository of releases trustworthy."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from models.commands import signing

if TYPE_CHECKING:
    from models.repository.repository import Repository

ROOT_WARNING_DAYS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    refresh = actions.add_parser(
        "refresh", help="sign anew what expires; for a timer, each day",
        description="Signs the timestamp anew, and other metadata that has less than half of its days left.",
    )  # fmt: skip
    signing.add_arguments(refresh)
    signing.add_expiry(refresh, *signing.DAYS)
    signing.add_passphrase(refresh)

    rotate = actions.add_parser(
        "rotate", help="replace keys of a role; needs the root keys",
        description="Replaces keys of a role. Devices follow from whichever root they trust; old keys sign no more.",
    )  # fmt: skip
    rotate.add_argument("role", choices=tuple(signing.DAYS), metavar="ROLE", help=", ".join(signing.DAYS))
    which = rotate.add_mutually_exclusive_group()
    which.add_argument("--key-id", action="append", metavar="ID", help="only this key (the beginning of its id)")
    which.add_argument("--all", action="store_true", help="all keys of the role, even of root")
    signing.add_arguments(rotate)
    signing.add_expiry(rotate, *signing.DAYS)
    signing.add_passphrase(rotate)

    revoke = actions.add_parser("revoke", help="withdraw a release: no device installs it any more")
    signing.add_release(revoke)
    revoke.add_argument("--reason", required=True, metavar="TEXT", help="people read it on the device")
    signing.add_arguments(revoke)
    signing.add_expiry(revoke)

    prune = actions.add_parser("prune", help="remove the oldest releases, and their files")
    prune.add_argument("--keep", type=int, default=10, metavar="N", help="of each model and group (default: 10)")
    signing.add_arguments(prune)
    signing.add_expiry(prune)

    show = actions.add_parser("show", help="what is in it, and what expires when; needs no private key")
    signing.add_arguments(show)


def run(args: argparse.Namespace) -> int:
    with signing.writing(args) as repository:
        actions = {"refresh": _refresh, "rotate": _rotate, "revoke": _revoke, "prune": _prune, "show": _show}
        return actions[args.action](args, repository)


def _refresh(args: argparse.Namespace, repository: Repository) -> int:
    from models.repository.repository import remaining_days
    from models.repository.upkeep import refresh

    print(f"signed {', '.join(refresh(repository))}; valid until {_date(repository.timestamp)}")
    left = remaining_days(repository.root)
    if left < ROOT_WARNING_DAYS:
        print(
            f"the root expires in {left:.0f} days, and devices trust nothing after that: bring {args.keys / 'root'} "
            "back and run this again"
        )
    return 0


def _rotate(args: argparse.Namespace, repository: Repository) -> int:
    from agent.errors import Int8dError
    from models.repository.upkeep import rotate

    if args.role == "root" and not args.key_id and not args.all:
        raise Int8dError("say which root key is replaced: --key-id ID ('int8d-make repo show' lists them), or --all")
    come, gone = rotate(repository, args.role, args.key_id)
    for new, old in zip(come, gone, strict=True):
        print(f"{args.role}: key {new[:16]} in place of {old[:16]}")
    print(f"root version {repository.root.signed.version}; the old private keys' files end in .old: destroy them")
    return 0


def _revoke(args: argparse.Namespace, repository: Repository) -> int:
    from models.repository.publish import revoke

    revoke(repository, repository.find(args.name, args.release, args.device_group), args.reason)
    print(f"withdrew {args.name} release {args.release}: {args.reason}")
    return 0


def _prune(args: argparse.Namespace, repository: Repository) -> int:
    from models.repository.upkeep import prune

    gone = prune(repository, args.keep)
    print(f"removed {len(gone)} releases, {sum(entry.file.length for entry in gone):,} bytes")
    return 0


def _show(args: argparse.Namespace, repository: Repository) -> int:
    from models.repository.rollout import described

    print(f"{'role':10} {'version':>7}  {'valid until':17}  keys (threshold)")
    root = repository.root.signed
    for role in signing.DAYS:
        document = getattr(repository, role)
        named = root.roles[role]
        ids = ", ".join(keyid[:16] for keyid in named.keyids)
        print(f"{role:10} {document.signed.version:>7}  {_date(document):17}  {ids} ({named.threshold})")
    releases = repository.releases()
    print(f"\n{'model':16} {'release':>7}  {'group':12} {'bytes':>13}  {'file':9} rollout")
    for entry in releases:
        r = entry.release
        state = f"withdrawn: {r.withdrawn}" if r.withdrawn else described(r.rollout, time.time())
        kind = "encrypted" if r.encryption == "age" else "plain"
        print(f"{r.model:16} {r.release:>7}  {r.device_group or 'all':12} {entry.file.length:>13,}  {kind:9} {state}")
    return 0


def _date(document: object) -> str:
    return f"{document.signed.expires:%Y-%m-%d %H:%M}Z"  # type: ignore[attr-defined]
