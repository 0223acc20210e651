"""What the repository says of a release, and whether it is meant for this device.

A release is a TUF target whose signed ``custom`` holds, under ``int8d``, the ``Release`` below as JSON. The workbench
writes it, the device reads it. What TUF signs is canonical JSON, which knows no fractions: percentages and shares are
decimal strings there.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from agent.errors import Int8dError

CUSTOM = "int8d"  # the key in a target's custom
ISSUED = "int8d-issued"  # in timestamp.json: when it was signed, seconds since 1970; the device's floor of time


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """From ``at`` on (seconds since 1970), ``percent`` of the devices."""

    percent: float
    at: int = 0


class Rollout(msgspec.Struct, frozen=True):
    """Which devices, and when. stages: in order of time; before the first, no device.

    salt: gives each release another order of devices; by default the same devices would always be first.
    abort_threshold: the share of failed devices from which on the publisher's tool stops it. aborted: it was stopped.
    """

    stages: tuple[Stage, ...] = (Stage(100.0),)
    salt: str = ""
    abort_threshold: float = 0.1
    aborted: bool = False

    def percent(self, now: float) -> float:
        """Of the devices, at ``now`` (seconds since 1970)."""
        if self.aborted:
            return 0.0
        return max((s.percent for s in self.stages if s.at <= now), default=0.0)

    def includes(self, device: str, now: float) -> bool:
        """Whether it is the device's turn."""
        return place(device, self.salt) < self.percent(now)


class Release(msgspec.Struct, frozen=True):
    """One file for one model. release: grows from one to the next. device_group: "" is every device.

    encryption: of the file; then plaintext_sha256 and plaintext_bytes are those of what is inside. withdrawn: why it
    must not be installed any more.
    """

    model: str
    release: int
    device_group: str = ""
    encryption: Literal["none", "age"] = "none"
    plaintext_sha256: str = ""
    plaintext_bytes: int = 0
    rollout: Rollout = Rollout()
    withdrawn: str = ""


class Target(msgspec.Struct, frozen=True):
    """A release, and the file that holds it, as signed. path: below the repository's ``targets/``, as it is fetched
    (with the hash in its name where the repository has consistent snapshots).
    """

    release: Release
    path: str
    sha256: str
    bytes: int


def release_of(custom: Any) -> Release | None:
    """From a target's ``custom``; None where it is no release of int8d. Raises ``Int8dError`` for a damaged one."""
    if not isinstance(custom, dict) or CUSTOM not in custom:
        return None
    try:
        return msgspec.convert(custom[CUSTOM], Release, strict=False)
    except msgspec.ValidationError as e:
        raise Int8dError(f"a release's description is of another version or damaged: {e}") from e


def custom_of(release: Release) -> dict[str, Any]:
    """A target's ``custom`` for it: what ``release_of`` reads."""
    described: dict[str, Any] = msgspec.to_builtins(release)
    rollout = described["rollout"]
    stages = [stage | {"percent": repr(stage["percent"])} for stage in rollout["stages"]]
    described["rollout"] = rollout | {"stages": stages, "abort_threshold": repr(rollout["abort_threshold"])}
    return {CUSTOM: described}


def place(device: str, salt: str) -> float:
    """Where a device stands in a rollout, 0..100, the same on each side: of SHA-256 of salt and name, the first 53
    bits.
    """
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) * 100.0 / 2**53
