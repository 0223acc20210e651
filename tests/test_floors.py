"""What a device remembers of its repository, and when it forgets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.tables import Updates
from agent.disk import Disk
from agent.repository.floors import Floor, Floors
from agent.repository.https import Https
from agent.repository.reasons import Refused
from agent.repository.trust import Trusted, refresh
from tests.updates.simulator import Simulator
from tests.updates.web import Web


class Device:
    """Refreshes into a folder of its own."""

    def __init__(self, folder: Path, web: Web, root: Path) -> None:
        self.folder = folder / "device"
        self.folder.mkdir()
        self.floors = self.folder / "floors.json"
        self.root, self._web = root, web

    def refresh(self, disk: Disk | None = None) -> Trusted:
        settings = Updates(repository=self._web.url, root=str(self.root))
        transport = Https(settings)
        try:
            return refresh(self.folder, transport, settings, disk)
        finally:
            transport.close()


@pytest.fixture
def sim(tmp_path: Path) -> Simulator:
    sim = Simulator(tmp_path / "publisher")
    sim.add(1, b"a model")
    sim.publish()
    return sim


@pytest.fixture
def web(sim: Simulator, stack) -> Web:
    web = Web(sim.folder)
    stack.callback(web.close)
    return web


@pytest.fixture
def device(tmp_path: Path, web: Web, sim: Simulator) -> Device:
    return Device(tmp_path, web, sim.root_file)


def test_floors_that_can_not_be_read_stop_updates_and_say_what_to_do(device: Device) -> None:
    device.refresh()
    device.floors.write_bytes(device.floors.read_bytes()[:20])
    with pytest.raises(Refused, match="remove it") as caught:
        device.refresh()
    assert caught.value.code == "floors"
    device.floors.unlink()
    device.refresh()


class Recorder(Disk):
    """order: files that were forced to the disk, and those that were written."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.order.append(path.name)

    def write(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        super().write(path, data, mode)
        self.order.append(path.name)


def test_metadata_is_on_the_disk_before_the_floors_that_rely_on_it(device: Device) -> None:
    disk = Recorder()
    device.refresh(disk)
    before = disk.order[: disk.order.index("floors.json")]
    there = {path.name for path in (device.folder / "tuf").rglob("*") if not path.is_symlink()}
    assert {"timestamp.json", "snapshot.json", "targets.json", "1.root.json", "root_history"} <= there <= set(before)


def test_metadata_of_a_check_that_failed_is_on_the_disk_too(device: Device, sim: Simulator) -> None:
    sim.path("targets").unlink()
    disk = Recorder()
    with pytest.raises(Refused) as caught:
        device.refresh(disk)
    assert caught.value.code == "not_found"
    assert {"timestamp.json", "snapshot.json"} <= set(disk.order)


def test_a_repository_that_has_nothing_new_costs_no_write(device: Device) -> None:
    device.refresh()
    before = device.floors.stat()
    device.refresh()
    assert device.floors.stat().st_ino == before.st_ino


def test_another_repositorys_root_by_hand_begins_anew(device: Device, sim: Simulator, web: Web, tmp_path: Path) -> None:
    for _ in range(3):
        sim.publish()
    device.refresh()
    (tmp_path / "second").mkdir()
    other = Simulator(tmp_path / "second" / "publisher")
    other.add(1, b"another model")
    other.publish()
    web.folder, device.root = other.folder, other.root_file
    assert device.refresh().timestamp.version == 1


@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "not seen yet"])
def test_a_newer_root_file_of_the_same_repository_keeps_the_floors(
    device: Device, sim: Simulator, web: Web, tmp_path: Path, seen: bool
) -> None:
    old = sim.copy(tmp_path / "old")
    sim.publish()
    device.refresh()
    sim.rotate("root")
    if seen:
        device.refresh()
    newer = tmp_path / "newer.json"
    newer.write_bytes(sim.root.to_bytes())
    device.root, web.folder = newer, old
    for name in ("timestamp.json", "snapshot.json"):
        (device.folder / "tuf" / name).write_bytes(b"")
    with pytest.raises(Refused) as caught:
        device.refresh()
    assert caught.value.code == "metadata_rollback"


@pytest.mark.parametrize("content", [None, b"", b"{}", b"<html>", b"[" * 100_000])
def test_a_root_file_that_is_none_is_named(device: Device, tmp_path: Path, content: bytes | None) -> None:
    device.root = tmp_path / "bad.json"
    if content is not None:
        device.root.write_bytes(content)
    with pytest.raises(Refused, match=r"updates\.root") as caught:
        device.refresh()
    assert caught.value.code == "bad_root"
    assert not device.floors.exists()


@pytest.mark.parametrize("issued", [10**30, 10**400])
def test_a_signed_time_beyond_all_dates_is_no_time_to_go_by(device: Device, sim: Simulator, issued: int) -> None:
    sim.issued = issued
    sim.publish()
    with pytest.raises(Refused, match="9999-12-31") as caught:
        device.refresh()
    assert caught.value.code == "clock"


FLOORS = Floors("", {"timestamp": Floor(7, ("a", "b")), "root": Floor(3, ("r",))}, issued=99.0)


@pytest.mark.parametrize("keys", [("a", "b"), ("a", "b", "c")])
def test_a_floor_holds_while_the_role_keeps_its_keys(keys: tuple[str, ...]) -> None:
    kept = FLOORS.without_rotated({"timestamp": keys, "root": ("r",)})
    assert kept.issued == 99.0
    with pytest.raises(Refused, match="version 7 was seen before"):
        kept.check({"timestamp": 6})


def test_a_floor_and_the_time_go_with_a_key_that_the_root_took_away() -> None:
    kept = FLOORS.without_rotated({"timestamp": ("a", "c"), "root": ("other",)})
    kept.check({"timestamp": 1})
    assert kept.issued == 0.0
    with pytest.raises(Refused, match="version 3 was seen before"):
        kept.check({"root": 2})
