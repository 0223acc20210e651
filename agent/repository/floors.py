"""What the repository must not fall behind: versions of its roles and its time, on the disk before they are relied on.

python-tuf compares new metadata with the files that it keeps, and does not force them to the disk: after a power cut
they may be empty, and then an old state of the repository would pass. ``floors.json`` is written whole or not at all.
A floor holds until the root takes one of its keys from the role: that is how a repository recovers from an attacker
who signed a version of 2,000,000,000 with a stolen key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from agent.disk import Disk
from agent.repository.reasons import Refused


class Floor(msgspec.Struct, frozen=True):
    """Of a role: the highest version that was verified, and the ids of the role's keys then."""

    version: int
    keys: tuple[str, ...]


class Floors(msgspec.Struct, frozen=True):
    """anchor: SHA-256 of the root file (``updates.root``) they belong to. issued: the highest time that a timestamp
    was signed at, seconds since 1970; it goes with the timestamp's floor.
    """

    anchor: str = ""
    roles: dict[str, Floor] = {}
    issued: float = 0.0

    def without_rotated(self, keys: dict[str, tuple[str, ...]]) -> Floors:
        """keys: by role, as the root names them now. The root's own floor stays: roots have no gaps."""
        kept = {
            role: floor
            for role, floor in self.roles.items()
            if role == "root" or set(floor.keys) <= set(keys.get(role, ()))
        }
        return Floors(self.anchor, kept, self.issued if "timestamp" in kept else 0.0)

    def check(self, versions: dict[str, int]) -> None:
        """Raises ``Refused("metadata_rollback")`` for a version below its floor."""
        for role, version in versions.items():
            floor = self.roles.get(role)
            if floor is not None and version < floor.version:
                raise Refused(
                    "metadata_rollback",
                    f"{role} metadata is version {version}, and version {floor.version} was seen before: the "
                    "repository's server gives an old state; publish a new one",
                )

    def raised(self, versions: dict[str, int], keys: dict[str, tuple[str, ...]], issued: float) -> Floors:
        """To verified metadata."""
        roles = {role: Floor(version, keys[role]) for role, version in versions.items()}
        return Floors(self.anchor, roles, max(self.issued, issued))


def read(path: Path) -> Floors:
    """None yet: those of a new device. Raises ``Refused("floors")`` where they can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Floors)
    except FileNotFoundError:
        return Floors()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Refused(
            "floors",
            f"'{path}' can't be read ({e}): without it old releases could come back; to trust the repository anew, as "
            "on the first day, remove it",
        ) from e


def write(path: Path, floors: Floors, disk: Disk) -> None:
    """Raises ``OSError``."""
    disk.write(path, msgspec.json.encode(floors), 0o600)


def anchor(root: bytes) -> str:
    """Of a root file."""
    return hashlib.sha256(root).hexdigest()
