"""What several commands do about the tuner: they use what it remembers, and never tune by themselves."""

from __future__ import annotations

import argparse

from agent.engine.answers import Tuning, default_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tuner-folder", metavar="FOLDER",
        help="where the tuner's answers lie (default: $STATE_DIRECTORY/tuner, else ~/.local/state/int8d/tuner)",
    )  # fmt: skip


def remembered(args: argparse.Namespace) -> Tuning:
    """Uses an answer where there is one."""
    return Tuning(args.tuner_folder or default_folder())
