"""``int8d key``: private keys, of the end-to-end encryption of messages and, with ``--age``, of encrypted models."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("new", "make a private key, in a new file, and print its public key"),
                       ("show", "print the public key of a private key")):  # fmt: skip
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("file", metavar="FILE")
        if name == "new":
            action.add_argument("--age", action="store_true", help="for encrypted models: an identity of age")


def run(args: argparse.Namespace) -> int:
    print("\n".join(_made(args.file, args.age) if args.action == "new" else _shown(args.file)))
    return 0


def _made(file: str, age: bool) -> list[str]:
    if age:
        from agent.updates import identity

        return [identity.create(file)]
    from agent.wire import keys

    return [keys.public_text(keys.create(file).public)]


def _shown(file: str) -> list[str]:
    from agent.updates import identity

    try:
        with open(file, "rb") as key:
            age = identity.is_identity(key.read(65536))
    except OSError:
        age = False  # the other says what is wrong
    if age:
        return identity.recipients(file)
    from agent.wire import keys

    return [keys.public_text(keys.load(file).public)]
