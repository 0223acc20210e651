"""Networks, clocks, disks and repositories that fail: what is committed serves, and the status says what is wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.daemon import EXIT_CONFIG
from models.repository.expiry import Expiry
from tests.chaos import faults
from tests.updates.bare import Bare, FullDisk
from tests.updates.device import Device, copied, prepare
from tests.updates.web import Handler

SHADOW_S = 1.0
SETTINGS = f"shadow_s = {SHADOW_S}\nprobation_s = 0.5\nmin_free_bytes = 1\nrequest_timeout_s = 2.0\n"
Make = Callable[..., Device]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def make(prepared: Path, tmp_path: Path) -> Iterator[Make]:
    """A device with release 1."""
    with ExitStack() as stack:

        def made(environment: dict[str, str] | None = None) -> Device:
            device = Device(tmp_path, SETTINGS, repo=copied(prepared, tmp_path))
            stack.callback(device.__exit__)
            device.start(environment)
            return device

        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[faults.Disk]:
    """Of 4 MiB, where the device's state lies."""
    try:
        disk = faults.Disk(tmp_path / "state")
    except faults.CannotRun as e:
        pytest.skip(str(e))
    yield disk
    disk.unmount()


def troubled(device: Device, code: str, release: int = 1) -> None:
    """A check fails with this code, and the release serves, after a restart, too."""
    first = device.load()
    assert first["repository"]["code"] == code, first
    device.agent.kill()
    device.restart()
    assert device.answers() == release
    status = device.load()
    assert status["repository"]["code"] == code, status
    assert status["serving"]["release"] == status["committed"]["release"] == release


def test_without_a_network_the_committed_release_serves(make: Make) -> None:
    device = make()
    device.web.close()
    troubled(device, "unreachable")


def test_with_an_expired_repository_the_committed_release_serves(make: Make) -> None:
    device = make()
    device.repo.expires = Expiry(timestamp=1 / 86400)
    device.publish(2)
    time.sleep(2)
    troubled(device, "expired")
    device.repo.expires = Expiry()
    device.repo.refresh()
    status = device.load()
    assert (status["committed"]["release"], status["repository"]) == (2, None)


def test_with_the_clock_at_1970_the_committed_release_serves(make: Make, tmp_path: Path) -> None:
    try:
        clock = faults.Clock(tmp_path / "clock")
    except faults.CannotRun as e:
        pytest.skip(str(e))
    device = make(clock.environment)
    device.publish(2)
    clock.jump(-int(time.time()))
    assert device.load()["repository"]["code"] == "clock"
    device.agent.kill()
    device.restart(clock.environment)
    assert device.answers() == 1
    status = device.load()
    assert status["repository"]["code"] == "clock"
    assert "1970-01-01" in status["repository"]["message"]
    clock.jump(0)
    assert device.load()["committed"]["release"] == 2


def test_on_a_full_disk_the_committed_release_serves(disk: faults.Disk, make: Make) -> None:
    device = make()
    device.publish(2)
    disk.fill()
    troubled(device, "no_space")
    disk.free()
    assert device.load()["committed"]["release"] == 2


def test_a_disk_that_fills_up_as_the_file_comes_is_said_so_and_the_update_goes_on_later(
    disk: faults.Disk, make: Make
) -> None:
    device = make()
    device.publish(2)
    full = threading.Event()

    def half(handler: Handler, data: bytes) -> None:
        handler.head(200, len(data))
        handler.body(data[: len(data) // 2], 0)
        full.wait(20)
        handler.body(data[len(data) // 2 :], 0)

    device.web.hostile["2.int8.safetensors"] = half
    device.drain()
    device.ask()
    until = time.monotonic() + 20
    while not any(part.stat().st_size for part in device.state.glob("served/digits/staging/*.part")):
        assert time.monotonic() < until, device.agent.log()
        time.sleep(0.02)
    disk.fill()
    full.set()
    status = device.wait(lambda s: s["repository"] is not None)
    assert (status["repository"]["code"], status["serving"]["release"]) == ("no_space", 1), status
    device.web.hostile.clear()
    disk.free()
    assert device.load()["committed"]["release"] == 2
    assert device.answers() == 2


def test_what_the_journal_has_no_room_for_does_not_serve(disk: faults.Disk, make: Make) -> None:
    device = make()
    device.publish(2)
    device.drain()
    device.ask()
    device.wait(lambda s: s["step"] == "shadow")
    disk.fill()
    status = device.wait(lambda s: s["state"] == "rolled_back")
    assert (status["reason"]["code"], status["serving"]["release"]) == ("no_space", 1), status
    assert device.answers() == 1
    disk.free()
    assert device.load()["committed"]["release"] == 2  # it was not the release's fault


def test_what_has_served_well_waits_for_room_to_be_committed(tmp_path: Path) -> None:
    disk = FullDisk()
    device = Bare(tmp_path, disk=disk)
    device.update(1)
    told, windows = [], itertools.count(1)
    device.machine.attach(device.service, told.append)

    def probation(model: str, tell: object, stop: threading.Event) -> None:
        disk.full = next(windows) < 3

    device.service.probation = probation  # type: ignore[method-assign]
    device.update(2)
    assert device.serving == device.machine.record.committed.release.release == 2
    waiting = [s for s in told if s.repository is not None]
    assert {(s.state, s.step, s.serving.release, s.repository.code) for s in waiting} == {
        ("pending", "probation", 2, "no_space")
    }
    assert next(windows) == 4
    assert (told[-1].state, told[-1].repository) == ("committed", None)


def test_with_a_disk_that_has_become_read_only_the_committed_release_serves(
    disk: faults.Disk, make: Make, tmp_path: Path
) -> None:
    device = make()
    device.publish(2)
    assert device.agent.terminate() == 0
    subprocess.run(["mount", "-o", "remount,ro", "none", tmp_path / "state"], check=True)
    device.restart()
    assert device.answers() == 1
    troubled(device, "disk")


def test_a_committed_file_that_is_damaged_gives_way_to_the_one_before_until_it_is_fetched_again(make: Make) -> None:
    device = make()
    device.publish(2)
    sha256 = device.load()["committed"]["sha256"]
    device.agent.kill()
    file = device.state / "models" / sha256 / "model"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    os.chmod(file, 0o644)
    file.write_bytes(data)
    device.restart()
    assert device.answers() == 1
    status = device.status()
    assert (status["state"], status["reason"]["code"], status["serving"]["release"]) == ("rolled_back", "damaged", 1)
    status = device.load()
    assert (status["state"], status["committed"]["release"]) == ("committed", 2), status
    assert device.answers() == 2


def test_without_its_journal_it_serves_what_the_links_say(make: Make) -> None:
    device = make()
    for garbage in (b"", bytes(500), b'{"state": "pend'):
        device.agent.kill()
        (device.state / "served" / "digits" / "journal.json").write_bytes(garbage)
        device.restart()
        assert device.answers() == 1
        assert device.status()["committed"]["release"] == 1
    device.publish(2)
    assert device.load()["committed"]["release"] == 2


def test_a_second_daemon_with_the_same_state_does_not_start(make: Make) -> None:
    device = make()
    first = device.agent.process
    try:
        device.agent.start(wait=False)
        assert device.agent.process.wait(20) == EXIT_CONFIG
        assert "another process has the updates" in device.agent.log()
        assert "Traceback" not in device.agent.log()
        assert device.answers() == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait(10)
