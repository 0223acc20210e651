"""``int8d key``: keys of the end-to-end encryption."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("new", "make a private key, in a new file, and print its public key"),
                       ("show", "print the public key of a private key")):  # fmt: skip
        actions.add_parser(name, help=text, description=text).add_argument("file", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    from agent.wire import keys

    key = keys.create(args.file) if args.action == "new" else keys.load(args.file)
    print(keys.public_text(key.public))
    return 0
