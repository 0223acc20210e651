"""``int8d-make keys``: the keys that sign releases."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.commands import signing

EPILOG = """DIR/root/ holds the root keys: they say which other keys count, and are needed only to replace a key. Carry
them away from this machine, and apart from each other. DIR/online/ holds the keys that sign releases each day.
DIR/root.json is public: give it to each device as 'root' in [updates]."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = commands.add_parser("init", help="make them, in a new folder", epilog=EPILOG)
    init.add_argument("folder", type=Path, metavar="DIR", help="a folder that is empty or not there yet")
    init.add_argument("--root-keys", type=int, default=3, metavar="N", help="how many root keys (default 3)")
    init.add_argument("--root-threshold", type=int, default=2, metavar="N", help="how many have to sign (default 2)")
    signing.add_passphrase(init)
    signing.add_expiry(init, "root")


def run(args: argparse.Namespace) -> int:
    signing.require()
    from models.repository.keys import init, passphrase_in

    days = signing.days_of(args, "root")
    keys = init(args.folder, args.root_keys, args.root_threshold, passphrase_in(args.passphrase_file), days)
    print(f"wrote {keys.root}: what each device is to trust ('root' in [updates])")
    print(f"wrote {args.folder / 'online'}: the keys that sign releases; back them up")
    print(
        f"wrote {args.folder / 'root'}: {args.root_keys} root keys, {args.root_threshold} of which sign for a new key; "
        "carry them away from this machine"
    )
    return 0
