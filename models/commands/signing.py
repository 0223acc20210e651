"""The options of all commands that sign: the repository, the keys, for how long."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import Int8dError
from models.repository.expiry import Expiry

if TYPE_CHECKING:
    from models.repository.repository import Repository

DAYS: dict[str, float] = dataclasses.asdict(Expiry())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repo", type=Path, required=True, metavar="DIR", help="the repository: a folder that a web server can serve"
    )
    parser.add_argument("--keys", type=Path, required=True, metavar="DIR", help="the keys of 'int8d-make keys init'")


def add_expiry(parser: argparse.ArgumentParser, *roles: str) -> None:
    for role in roles or ("targets", "snapshot", "timestamp"):
        parser.add_argument(
            f"--expires-{role}", type=float, default=DAYS[role], metavar="DAYS",
            help=f"for how long {role} metadata is valid (default {DAYS[role]:g})",
        )  # fmt: skip


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line locks the root keys")


def add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the model's name")
    parser.add_argument("release", type=int, metavar="RELEASE", help="its number")
    parser.add_argument("--device-group", metavar="G", help="where several groups have a release of that number")


@contextmanager
def writing(args: argparse.Namespace, create: bool = False) -> Iterator[Repository]:
    """The repository that the options name, while nobody else writes it. Raises ``Int8dError``."""
    require()
    from models.repository.keys import Keys, passphrase_in
    from models.repository.repository import opened

    days = {role: days_of(args, role) for role in DAYS}
    keys = Keys(args.keys, passphrase_in(getattr(args, "passphrase_file", None)))
    with opened(args.repo, keys, Expiry(**days), create) as repository:
        yield repository


def days_of(args: argparse.Namespace, role: str) -> float:
    """For which a role's metadata is to be valid. Raises ``Int8dError`` for none."""
    days: float = getattr(args, f"expires_{role}", DAYS[role])
    if not 0 < days <= 36500:
        raise Int8dError(f"--expires-{role} {days:g}: from a fraction of a day to 36500 days")
    return days


def require() -> None:
    """Raises ``Int8dError`` where what signs is not installed."""
    try:
        import securesystemslib  # noqa: F401
        import tuf  # noqa: F401
    except ImportError as e:
        raise Int8dError(f"{e.name} is not installed, and signing needs it: pip install 'int8d[updates]'") from e
