"""What is asked for survives a death, is done once, and may come in the moment that an update begins or ends."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
from agent.updates.wishes import Wish, Wishes
from tests.updates.bare import MODEL, Bare, BareService, BareSteps, FullDisk, target

SETTINGS = Settings(repository="there", interval=0, max_wishes=4)

Told = tuple[Status, Refused | None]


class Steps(BareSteps):
    """The repository has the release that is asked for."""

    def find(self, model: str, record: Record, wanted: int | None, stop: threading.Event) -> Found:
        return Found(target=None if wanted is None else target(wanted))


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
    updates = Updates("box1", [MODEL], Store(tmp_path, Disk()), SETTINGS, Steps(), Disk())
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


# After a death: the next process is made while the last one has not come to anything


class Device:
    """One process after the other, on one folder."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self.folder, self._disk = folder, disk or Disk()
        self.told = queue.Queue[Told]()
        self.updates: Updates
        self.service: Service

    def start(self, alive: bool = True) -> int:
        """alive: its thread runs. The release that serves at once."""
        self.updates = Updates("box1", [MODEL], Store(self.folder, self._disk), SETTINGS, Steps(), self._disk)
        self.service = Service()
        self.service.serving = self.updates.recover()[MODEL]
        if alive:
            self.updates.start(self.service, lambda status: None)
        return self.serves()

    def serves(self) -> int:
        return 0 if self.service.serving is None else self.service.serving.release.release

    def ask(self, action: Any, release: int | None = None) -> None:
        self.updates.ask(MODEL, action, lambda *answer: self.told.put(answer), release)

    def does(self, action: Any, release: int | None = None) -> int:
        """What serves then."""
        self.ask(action, release)
        _, why = self.told.get(timeout=10)
        assert why is None
        return self.serves()

    def stays_on_probation(self, release: int, dawdles_s: float = 0.0) -> None:
        """Until it is told to stop, and so much longer."""
        reached = threading.Event()

        def probation(model: str, tell: object, stop: threading.Event) -> None:
            reached.set()
            assert stop.wait(10)
            time.sleep(dawdles_s)

        self.service.probation = probation  # type: ignore[method-assign]
        self.ask("install", release)
        assert reached.wait(10)

    def wishes(self) -> Wishes:
        return Wishes(self.folder / "served" / MODEL, self._disk, SETTINGS.max_wishes, SETTINGS.max_starts)

    def kept(self) -> list[Any]:
        return json.loads((self.folder / "served" / MODEL / "wishes.json").read_bytes())["wishes"]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.updates.stop(10)


def test_what_was_asked_for_before_a_death_is_done_after_it_in_its_order(device: Device) -> None:
    device.start(alive=False)
    device.ask("install", 1)
    device.ask("check")
    device.ask("install", 2)
    device.ask("rollback")
    device.updates.close()
    device.start()
    assert device.does("check") == 1  # in its turn
    assert device.updates.status(MODEL).reason.code == "by_hand"  # type: ignore[union-attr]
    assert device.kept() == []


@pytest.mark.parametrize("done", [False, True])
def test_a_rollback_that_a_death_cut_short_takes_back_one_release(device: Device, done: bool) -> None:
    device.start()
    for release in (1, 2, 3):
        device.does("install", release)
    if done:
        device.does("rollback")
    device.updates.stop(10)
    wish = Wish("rollback")
    wishes = device.wishes()
    wishes.put(wish)
    wishes.takes_back(wish, target(3).sha256)
    device.start()
    assert device.does("check") == 2


def test_what_is_to_be_taken_back_does_not_serve_once_more(device: Device) -> None:
    device.start()
    device.does("install", 1)
    device.stays_on_probation(2, dawdles_s=0.2)
    device.ask("rollback")
    shutil.copytree(device.folder, device.folder / "at the death", symlinks=True)
    device.told.get(timeout=10)
    after = Device(device.folder / "at the death")
    assert after.start() == 1
    assert after.does("check") == 1
    assert after.kept() == []
    after.updates.stop(10)


def test_a_rollback_ends_the_update_though_too_many_wishes_wait(device: Device) -> None:
    device.start()
    device.does("install", 1)
    device.stays_on_probation(2)
    for _ in range(SETTINGS.max_wishes):
        device.ask("check")
    with pytest.raises(Refused, match="wait already"):
        device.ask("rollback")
    status, why = device.told.get(timeout=10)
    assert (status.serving.release, why and why.code) == (1, "by_hand")


def test_a_rollback_from_a_release_that_does_not_serve_is_refused(device: Device) -> None:
    device.start()
    device.does("install", 1)
    device.does("install", 2)
    device.ask("rollback", 1)
    status, why = device.told.get(timeout=10)
    assert why is not None
    assert (why.code, status.serving.release) == ("not_installed", 2)
    assert device.does("rollback", 2) == 1


def test_a_rollback_is_done_on_a_full_disk(tmp_path: Path) -> None:
    disk = FullDisk()
    device = Device(tmp_path, disk)
    device.start()
    device.does("install", 1)
    device.does("install", 2)
    disk.full = True
    assert device.does("rollback") == 1
    disk.full = False
    device.updates.stop(10)


def test_what_processes_die_with_is_tried_three_times(device: Device) -> None:
    device.start(alive=False)
    device.ask("install", 1)
    for _ in range(3):
        device.updates.close()
        device.start(alive=False)
        assert len(device.kept()) == 1
    device.updates.close()
    device.start()
    assert device.does("check") == 0
    assert device.kept() == []


def test_of_a_file_that_cannot_be_read_nothing_is_done(device: Device) -> None:
    path = device.folder / "served" / MODEL / "wishes.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"wishes": [{"action": "format"}]}')
    device.start()
    assert device.does("install", 1) == 1
