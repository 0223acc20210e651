"""Whether the repository can be believed: The Update Framework's rules by python-tuf, and what they leave open.

    trusted = refresh(folder, transport, settings)      # Refused: with a code for each attack
    trusted.targets.targets["digits/7.int8.safetensors"]

Beyond python-tuf: its files are forced to the disk, versions and the signed time have floors of our own (floors.py),
expiry is judged by the later of clock and signed time, so that a box whose clock starts at 1970 takes nothing that was
expired when it was last online, and each refusal says which attack it looks like and what to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient.updater import Updater

from agent.config.tables import Updates
from agent.disk import Disk, of_disk
from agent.repository import floors as floors_file
from agent.repository.fetcher import CONFIG, FOLDER, Fetcher, role_of
from agent.repository.floors import Floors
from agent.repository.reasons import Refused
from agent.repository.release import ISSUED
from agent.repository.transport import Transport

_LAST = 253_402_300_799  # the end of the year 9999, where dates end
CLOCK_SLACK_S = 300.0  # clocks of the publisher and the device may differ by this
_NOBODY = "somebody else answers, or the publisher signed with a key that updates.root does not lead to"


class Trusted(NamedTuple):
    """Verified metadata. now: the time it was judged at, seconds since 1970: the clock's, or the signed one's."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    now: float


def refresh(
    folder: Path, transport: Transport, settings: Updates, disk: Disk | None = None,
    clock: Callable[[], float] = time.time,
) -> Trusted:  # fmt: skip
    """The repository's present state. folder: where ``tuf/`` and ``floors.json`` lie. Raises ``Refused``."""
    disk = disk or Disk()
    root = _first_root(settings.root)
    try:
        kept = _floors_for(root, folder, disk)
        disk.folder(folder / "tuf")
        try:
            _update(folder / "tuf", root, transport)
        finally:
            disk.sync_tree(folder / "tuf")
        found = _load(folder / "tuf")
        keys = {role: tuple(sorted(named.keyids)) for role, named in found.root.roles.items()}
        versions = {signed.type: signed.version for signed in found[:4]}
        floors = kept.without_rotated(keys)
        floors.check(versions)
        raised = floors.raised(versions, keys, _issued(found.timestamp))
        if raised != kept:
            floors_file.write(folder / "floors.json", raised, disk)
    except OSError as e:
        raise of_disk(e, folder) from e
    now = _now(clock(), raised.issued, settings)
    for signed in found[:4]:
        if signed.expires.timestamp() <= now:
            raise _expired(signed.type, signed.expires)
    return found._replace(now=now)


def _first_root(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise Refused("bad_root", f"updates.root '{path}' can't be read ({e.strerror}): copy root.json there") from e


def _floors_for(root: bytes, folder: Path, disk: Disk) -> Floors:
    """Those that are kept, if they are about the repository that this root file begins.

    Another root file may be a newer one of the same repository; where it is not, somebody has decided to trust another
    repository, and what is remembered of the old one is dropped.
    """
    path = folder / "floors.json"
    floors, anchor = floors_file.read(path), floors_file.anchor(root)
    if floors.anchor in ("", anchor):
        return Floors(anchor, floors.roles, floors.issued)
    version = _version(root)
    try:
        same = (folder / "tuf" / "root_history" / f"{version}.root.json").read_bytes() == root
    except OSError:
        same = False
    known = floors.roles.get("root")
    if same or (known is not None and version > known.version):
        return Floors(anchor, floors.roles, floors.issued)
    disk.remove(folder / "tuf")
    disk.remove(path)
    return Floors(anchor)


def _version(root: bytes) -> int:
    try:
        return Metadata[Root].from_bytes(root).signed.version
    except exceptions.RepositoryError as e:
        raise _bad_root(e) from e


def _bad_root(error: Exception) -> Refused:
    return Refused("bad_root", f"updates.root is no root that can be trusted ({error}): copy the publisher's root.json")


def _update(folder: Path, root: bytes, transport: Transport) -> None:
    fetcher = Fetcher(transport)
    try:
        updater = Updater(str(folder), FOLDER, fetcher=fetcher, config=CONFIG, bootstrap=root)
    except exceptions.RepositoryError as e:
        raise _bad_root(e) from e
    try:
        updater.refresh()
    except exceptions.DownloadError as e:
        raise Refused("unreachable", str(e)) from e
    except exceptions.RepositoryError as e:
        raise _judged(e, *fetcher.last, folder) from e


def _load(folder: Path) -> Trusted:
    """What ``_update`` left there is what it verified."""
    root, timestamp, snapshot, targets = (
        (folder / f"{role}.json").read_bytes() for role in ("root", "timestamp", "snapshot", "targets")
    )
    return Trusted(
        Metadata[Root].from_bytes(root).signed,
        Metadata[Timestamp].from_bytes(timestamp).signed,
        Metadata[Snapshot].from_bytes(snapshot).signed,
        Metadata[Targets].from_bytes(targets).signed,
        0.0,
    )


def _issued(timestamp: Timestamp) -> float:
    found = timestamp.unrecognized_fields.get(ISSUED)
    return float(max(0, min(found, _LAST))) if isinstance(found, int) else 0.0


def _now(clock: float, issued: float, settings: Updates) -> float:
    if clock + CLOCK_SLACK_S < issued and settings.without_clock == "refuse":
        raise Refused(
            "clock",
            f"the clock says {_date(clock)}, and the repository has signed at {_date(issued)}: set the clock, or "
            'updates.without_clock = "floor"',
        )
    return max(clock, issued)


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _expired(role: str, since: datetime | None) -> Refused:
    when = f" on {since:%Y-%m-%d %H:%M}" if since else ""
    return Refused(
        "expired",
        f"{role} metadata has expired{when}: its publisher must sign anew (int8d-make repo refresh), unless this box's "
        "clock is ahead, or somebody holds new metadata back",
    )


def _judged(error: exceptions.RepositoryError, path: str, data: bytes, folder: Path) -> Refused:
    """Which attack a refusal of python-tuf's looks like, from the file that came last."""
    role = role_of(path)
    told = f"'{path}': {error}"
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        if data.lstrip()[:1] == b"{":
            return Refused("truncated", f"'{path}' ends in the middle")
        return Refused("not_a_repository", f"'{path}' is no metadata: a captive portal, or updates.repository is wrong")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except exceptions.RepositoryError as e:
        return Refused("not_a_repository", f"'{path}' is no metadata of a repository ({e})")
    signed = metadata.signed
    if signed.type != role:
        return Refused("mix_and_match", f"'{path}' is metadata of role {signed.type}")
    known: Root = Metadata[Root].from_bytes((folder / "root.json").read_bytes()).signed
    refused = _unsigned(path, metadata, known)
    if refused is not None:
        return refused
    if isinstance(error, exceptions.ExpiredMetadataError):
        expired = known if role == "timestamp" and known.is_expired() else signed
        return _expired(expired.type, expired.expires)
    if isinstance(error, exceptions.LengthOrHashMismatchError) or role in ("root", "targets"):
        return Refused("mix_and_match", f"{told}: parts of different states; publish again, or somebody mixes them")
    if role == "snapshot":
        announced: Timestamp = Metadata[Timestamp].from_bytes((folder / "timestamp.json").read_bytes()).signed
        if signed.version != announced.snapshot_meta.version:
            return Refused("mix_and_match", f"{told}: parts of different states; publish again, or somebody mixes them")
    return Refused("metadata_rollback", f"{told}: the server gives an old state; publish a new one")


def _unsigned(path: str, metadata: Metadata[Any], known: Root) -> Refused | None:
    """Where a role's signatures do not suffice. A root needs those of the one before and its own."""
    role, payload, signatures = metadata.signed.type, metadata.signed_bytes, metadata.signatures
    delegators = [known, metadata.signed] if role == "root" else [known]
    for delegator in delegators:
        result = delegator.get_verification_result(role, payload, signatures)
        if not result.signed:
            return Refused("wrong_signature", f"'{path}' is signed by no key that the root names: {_NOBODY}")
        if not result.verified:
            return Refused(
                "too_few_signatures",
                f"'{path}' has {len(result.signed)} of the {result.threshold} signatures it needs: let more holders of "
                "keys sign it",
            )
    return None
