"""``int8d run``: the daemon."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="int8d.toml", metavar="FILE", help="default: int8d.toml")


def run(args: argparse.Namespace) -> int:
    from agent import daemon

    return daemon.main(args.config)
