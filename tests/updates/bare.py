"""The state machine with its disk, and nothing else real: for what is tried a thousand times."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from agent.config.tables import Updates as Settings
from agent.disk import Disk
from agent.repository.reasons import Refused
from agent.repository.release import Release, Target
from agent.updates.install import Install
from agent.updates.journal import Journal
from agent.updates.store import Store

MODEL = "digits"


def target(number: int) -> Target:
    """A release whose file is a line of text."""
    data = text(number)
    return Target(Release(MODEL, number), f"{MODEL}/{number}", hashlib.sha256(data).hexdigest(), len(data))


def text(number: int) -> bytes:
    return f"release {number}\n".encode() * 50


class FullDisk(Disk):
    """full: takes nothing more."""

    full = False

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        super().write(path, data, mode)


class BareSteps:
    """fails: by step, why it does."""

    def __init__(self, **fails: Refused) -> None:
        self._fails = fails

    def fetch(self, target: Target, part: Path, progress: Callable[[int], None], stop: threading.Event) -> None:
        if "fetch" in self._fails:
            raise self._fails["fetch"]
        part.write_bytes(text(target.release.release))
        Disk().sync(part)
        progress(target.bytes)

    def test(
        self, model: str, target: Target, file: Path, serving: Target | None, stop: threading.Event
    ) -> dict[str, float]:
        assert file.read_bytes() == text(target.release.release)
        if "test" in self._fails:
            raise self._fails["test"]
        return {"median_us": 1.0}


class BareService:
    """serving: the number of what would answer now; 0: int8d.toml's own."""

    def __init__(self, serving: Target | None, fails: dict[str, Refused] | None = None) -> None:
        self.serving, self._candidate = serving, serving
        self._fails = fails or {}

    def load(self, model: str, target: Target | None) -> None:
        self._fail("load")
        self._candidate = target

    def shadow(self, model: str, tell: Callable[[dict[str, float]], None], stop: threading.Event) -> None:
        self._fail("shadow")

    def switch(self, model: str) -> None:
        self.serving = self._candidate

    def probation(self, model: str, tell: Callable[[dict[str, float]], None], stop: threading.Event) -> None:
        self._fail("probation")

    def back(self, model: str, target: Target | None) -> None:
        self.serving = target

    def keep(self, model: str) -> None:
        pass

    def _fail(self, step: str) -> None:
        if step in self._fails:
            raise self._fails[step]


class Bare:
    """A device that has just started from ``folder``; the first thing it did was to recover."""

    def __init__(
        self,
        folder: Path,
        fails: dict[str, Refused] | None = None,
        settings: Settings | None = None,
        disk: Disk | None = None,
    ) -> None:
        fails = fails or {}
        disk = disk or Disk()
        self.store = Store(folder, disk)
        journal = Journal(self.store.of(MODEL), disk)
        self.machine = Install("box1", MODEL, self.store, journal, BareSteps(**fails), settings or Settings())
        self.service = BareService(self.machine.recover(), fails)
        self.machine.attach(self.service, lambda status: None)

    @property
    def serving(self) -> int:
        """The release that would answer now, read whole from its file; 0: int8d.toml's own."""
        serving = self.service.serving
        if serving is None:
            return 0
        number = serving.release.release
        assert self.store.file(serving).read_bytes() == text(number)
        return number

    def update(self, number: int) -> None:
        """To the end, or on from where it stands."""
        if not self.machine.record.under_way:
            self.machine.begin(target(number))
        self.machine.go_on()
        keep = {t.sha256 for t in (self.machine.record.committed, self.machine.record.previous) if t is not None}
        self.store.tidy(keep)
