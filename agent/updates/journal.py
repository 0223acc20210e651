"""What a device knows of a model's updates: written, and synced, before each step, so that whoever starts next can go
on or go back.

One JSON file for each model. What serves is told by it and by the links of ``agent.updates.store``, which are mended
after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.disk import Disk
from agent.repository.release import Target
from agent.updates.status import Reason, State, Status, Version, job_of

log = logging.getLogger(__name__)
_REFUSED_KEPT = 100  # releases that were tried and rolled back; the oldest are forgotten


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content.

    committed, previous: what has served well, and what did before it; None is the file that int8d.toml names.
    target: what the update under way, or the last one, is about. switched: whether it serves. starts: attempts to load
    it, counted before each. floor: the highest release that was ever committed. refused: by SHA-256, what was tried
    here and is not tried again by itself. reason: why the last one was rolled back. test, shadow, probation: as in
    ``Status``.
    """

    state: State = "idle"
    step: str = ""
    committed: Target | None = None
    previous: Target | None = None
    target: Target | None = None
    switched: bool = False
    starts: int = 0
    floor: int = 0
    refused: dict[str, Reason] = {}
    reason: Reason | None = None
    test: dict[str, float] = {}
    shadow: dict[str, float] = {}
    probation: dict[str, float] = {}
    updated_unix_s: float = 0.0

    @property
    def serving(self) -> Target | None:
        """What a process that starts now shall serve."""
        return self.target if self.state == "pending" and self.switched else self.committed

    @property
    def under_way(self) -> bool:
        """Whether there is an update to go on with."""
        return self.state in ("fetching", "fetched", "tested", "pending")


class Journal:
    """Of one model. folder: where it lies; made with the first record. clock: seconds since 1970."""

    def __init__(self, folder: Path, disk: Disk, clock: Callable[[], float] = time.time) -> None:
        self._path, self._disk, self._clock = folder / "journal.json", disk, clock
        self.record = Record()
        self.damaged = False

    def read(self) -> Record:
        """What the last process wrote. A file that can't be read counts as none, and ``damaged`` says so: it is
        written in one step, so only a failing disk does that.
        """
        self.record, self.damaged = load(self._path)
        return self.record

    def write(self, **changes: object) -> Record:
        """Changes the record, on disk first. Raises OSError; then nothing has changed."""
        changed = msgspec.structs.replace(self.record, updated_unix_s=self._clock(), **changes)
        self._disk.folder(self._path.parent)
        self._disk.write(self._path, msgspec.json.encode(changed))
        self.record = changed
        return changed

    def remember(self, **changes: object) -> Record:
        """Changes the record in memory alone: for what is only told, and for a disk that is full."""
        self.record = msgspec.structs.replace(self.record, **changes)
        return self.record


def load(path: Path) -> tuple[Record, bool]:
    """A journal's record, and whether it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record), False
    except FileNotFoundError:
        return Record(), False
    except (msgspec.DecodeError, UnicodeDecodeError, OSError, RecursionError) as e:
        log.error("%s can't be read (%s); what serves is told by the links beside it", path, e)
        return Record(), True


def refused(record: Record, sha256: str, reason: Reason) -> dict[str, Reason]:
    """``record.refused`` with one more."""
    kept = {k: v for k, v in record.refused.items() if k != sha256}
    kept[sha256] = reason
    return dict(list(kept.items())[-_REFUSED_KEPT:])


def version(target: Target | None) -> Version:
    """A target as the status tells it; None is release 0, the file that int8d.toml names."""
    return Version() if target is None else Version(target.release.release, target.sha256)


def status(device: str, model: str, record: Record) -> Status:
    """What the journal tells of, for all to read."""
    return Status(
        device=device,
        model=model,
        state=record.state,
        job=job_of(record.state),
        step=record.step,
        serving=version(record.serving),
        committed=version(record.committed),
        previous=version(record.previous),
        target=None if record.target is None else version(record.target),
        bytes=0 if record.target is None else record.target.bytes,
        starts=record.starts,
        reason=record.reason,
        test=record.test,
        shadow=record.shadow,
        probation=record.probation,
        updated_unix_s=record.updated_unix_s,
    )
