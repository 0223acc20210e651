"""The step `find`: which release this device should have, of a repository that is verified first.

Runs in a child (child.py); what asks for it imports this file, too, but not python-tuf. Releases are in the top
targets role; delegated roles are not read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.config.tables import Broker, Updates
from agent.errors import Int8dError
from agent.repository.connect import open_transport
from agent.repository.reasons import Refused
from agent.repository.release import Target, release_of
from agent.repository.transport import Progress, Transport

if TYPE_CHECKING:
    from tuf.api.metadata import Root, Targets

    from agent.repository.trust import Trusted

log = logging.getLogger(__name__)


class Ask(msgspec.Struct, kw_only=True):
    """folder: the device's ``updates``. committed: the release in service, 0 for the file that int8d.toml names, and
    its file's SHA-256. wanted: a release that a person asked for; None: what is due. refused: SHA-256 of files that
    were rolled back here, and do not come again by themselves.
    """

    folder: str
    device: str
    model: str
    settings: Updates
    broker: Broker = Broker()
    committed: int = 0
    committed_sha256: str = ""
    wanted: int | None = None
    refused: list[str] = []


class Found(msgspec.Struct, kw_only=True):
    """target: what to fetch; None: nothing, and ``why`` says why not. waiting: a release that has not come to this
    device yet. withdrawn: why the publisher took the committed release back; empty: it was not. now: by the device's
    clock or the repository's, seconds since 1970.
    """

    target: Target | None = None
    why: str = ""
    waiting: Target | None = None
    withdrawn: str = ""
    now: float = 0.0


def perform(ask: Ask, progress: Progress) -> Found:
    """Refreshes and chooses. Raises ``Refused``."""
    transport = open_transport(ask.settings, ask.device, ask.broker)
    try:
        return find(ask, transport)
    finally:
        transport.close()


def find(ask: Ask, transport: Transport, clock: Callable[[], float] = time.time) -> Found:
    """Through a transport that is open. Raises ``Refused``."""
    from agent.repository.trust import refresh

    return choose(ask, refresh(Path(ask.folder), transport, ask.settings, clock=clock))


def choose(ask: Ask, trusted: Trusted) -> Found:
    """Of verified metadata. Raises ``Refused``: for a release that was asked for and can't be had, or is too large."""
    mine = sorted(_mine(ask, trusted.root, trusted.targets), key=lambda t: _preference(ask.settings, t), reverse=True)
    found = Found(now=trusted.now)
    found.withdrawn = next((t.release.withdrawn for t in mine if t.sha256 == ask.committed_sha256), "")
    if ask.wanted is None:
        _due(ask, mine, found)
    else:
        _asked_for(ask, mine, found)
    if found.target is not None and found.target.bytes > ask.settings.max_bytes:
        raise Refused(
            "too_large",
            f"release {found.target.release.release} has {found.target.bytes} bytes, and updates.max_bytes is "
            f"{ask.settings.max_bytes}",
        )
    return found


def _due(ask: Ask, mine: list[Target], found: Found) -> None:
    newer = [t for t in mine if t.release.release > ask.committed and not t.release.withdrawn]
    if not newer:
        found.why = "no newer release"
        return
    fresh = [t for t in newer if t.sha256 not in ask.refused]
    if not fresh:
        found.why = f"release {newer[0].release.release} was rolled back here"
        return
    found.target = next((t for t in fresh if t.release.rollout.includes(ask.device, found.now)), None)
    first = fresh[0]
    if found.target is not None and first.release.release <= found.target.release.release:
        return
    if first.release.rollout.aborted:
        found.why = f"release {first.release.release}'s rollout was stopped"
    else:
        found.waiting = first
        found.why = f"release {first.release.release} has not come to this device yet"


def _asked_for(ask: Ask, mine: list[Target], found: Found) -> None:
    number = ask.wanted
    assert number is not None
    if number < ask.committed:
        raise Refused(
            "release_rollback",
            f"release {number} is older than {ask.committed}, which is committed: to go back to the one before, "
            "use int8d update rollback; else publish it again under a higher number",
        )
    same = [t for t in mine if t.release.release == number]
    if not same:
        known = ", ".join(str(n) for n in sorted({t.release.release for t in mine})) or "none"
        raise Refused("not_found", f"the repository has no release {number} of '{ask.model}' here; it has: {known}")
    target = same[0]
    if target.release.withdrawn:
        raise Refused("withdrawn", f"release {number} was withdrawn: {target.release.withdrawn}")
    if target.release.rollout.aborted:
        raise Refused("withdrawn", f"release {number}'s rollout was stopped by its publisher")
    if target.sha256 == ask.committed_sha256:
        found.why = f"release {number} is committed already"
        return
    found.target = target


def _preference(settings: Updates, target: Target) -> tuple[int, bool, bool]:
    """The highest number; of the same, this device's group; of the same, the form that its key speaks for."""
    release = target.release
    encrypted = release.encryption != "none"
    return release.release, release.device_group != "", encrypted == (settings.key is not None)


def _mine(ask: Ask, root: Root, targets: Targets) -> Iterator[Target]:
    """Releases of this model for this device's group, or for all."""
    for path, file in targets.targets.items():
        try:
            release = release_of(file.custom)
        except Int8dError as e:
            log.warning("'%s' is left out: %s", path, e)
            continue
        sha256 = file.hashes.get("sha256")
        if release is None or sha256 is None or release.model != ask.model:
            continue
        if release.device_group in ("", ask.settings.device_group):
            folder, slash, name = path.rpartition("/")
            fetched = f"{folder}{slash}{sha256}.{name}" if root.consistent_snapshot else path
            yield Target(release, fetched, sha256, file.length)
