"""What is asked for in the moment that an update begins, or comes to its end."""

from __future__ import annotations

import errno
import queue
import threading
from pathlib import Path

from agent.config.tables import Updates as Settings
from agent.disk import Disk
from agent.errors import ModelError
from agent.repository.find import Found
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.updates.journal import Record
from agent.updates.status import Status
from agent.updates.store import Store
from agent.updates.updater import Updates
from tests.updates.bare import MODEL, Bare, BareService, BareSteps, target

Told = tuple[Status, Refused | None]


class Steps(BareSteps):
    """The repository has the release that is asked for."""

    def find(self, model: str, record: Record, wanted: int | None, stop: threading.Event) -> Found:
        assert wanted is not None
        return Found(target=target(wanted))


class Service(BareService):
    """at_commit: done when a release has been committed, before its update has come to its end."""

    def __init__(self) -> None:
        super().__init__(None)
        self.at_commit = lambda: None

    def keep(self, model: str) -> None:
        at_commit, self.at_commit = self.at_commit, lambda: None
        at_commit()

    def back(self, model: str, target: Target | None) -> None:
        self.serving = target


class FullDisk(Disk):
    """full: takes nothing more."""

    full = False

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        super().write(path, data, mode)


def test_what_the_journal_has_no_room_for_does_not_begin_and_the_status_says_why(tmp_path: Path) -> None:
    disk = FullDisk()
    updates = Updates("box1", [MODEL], Store(tmp_path, disk), Settings(interval=0), Steps(), disk)
    updates.recover()
    told = queue.Queue[Told]()
    updates.start(Service(), lambda status: None)
    try:
        disk.full = True
        updates.ask(MODEL, "install", lambda *answer: told.put(answer), 1)
        status, why = told.get(timeout=10)
        assert (status.state, why and why.code) == ("idle", "no_space")
        assert status.repository is not None
        assert status.repository.code == "no_space"
        disk.full = False
        updates.ask(MODEL, "install", lambda *answer: told.put(answer), 1)
        status, why = told.get(timeout=10)
        assert (status.state, status.repository, why) == ("committed", None, None)
    finally:
        updates.stop(10)


def test_a_rollback_that_comes_as_the_release_is_committed_takes_it_back_and_harms_no_later_one(tmp_path: Path) -> None:
    settings = Settings(repository="there", interval=0)
    updates = Updates("box1", [MODEL], Store(tmp_path, Disk()), settings, Steps(), Disk())
    service, told = Service(), queue.Queue[Told]()
    assert updates.recover() == {MODEL: None}
    updates.start(service, lambda status: None)

    def tell(status: Status, why: Refused | None) -> None:
        told.put((status, why))

    def committed(number: int) -> None:
        updates.ask(MODEL, "install", tell, number)
        status, why = told.get(timeout=10)
        assert (status.state, status.serving.release, why) == ("committed", number, None)

    try:
        committed(1)
        service.at_commit = lambda: updates.ask(MODEL, "rollback", tell)
        committed(2)
        status, why = told.get(timeout=10)
        assert (status.state, status.serving.release, why) == ("rolled_back", 1, None)
        assert service.serving == target(1)
        committed(3)
    finally:
        updates.stop(10)


def test_a_release_that_fails_gives_way_to_an_older_one_where_the_one_before_cannot_be_loaded(tmp_path: Path) -> None:
    for number in (1, 2):
        Bare(tmp_path).update(number)
    device = Bare(tmp_path, {"probation": Refused("errors")})
    back = device.service.back

    def broken(model: str, target: Target | None) -> None:
        if target is not None and target.release.release == 2:
            raise ModelError("it can't be read")
        back(model, target)

    device.service.back = broken  # type: ignore[method-assign]
    device.update(3)
    assert device.serving == device.machine.status().serving.release == 1
    assert device.machine.record.state == "rolled_back"
