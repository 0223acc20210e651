"""Releases that must not come into service: the old model answers every message meanwhile, and the status says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.updates.bad import golden_differs, sign
from tests.updates.device import ENDED, QUICK, Device
from tests.updates.traffic import Traffic

MODULE = "tests.updates.planted"
PLANT = {"PLANT": "4:hang 5:crash 6:die 7:stuck"}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """It has release 1; some of the next ones do it harm."""
    device = Device(tmp_path_factory.mktemp("device"), QUICK + "test_timeout_s = 8\n", module=MODULE)
    try:
        device.publish(1)
        device.start(PLANT)
        assert device.load()["state"] == "committed"
        yield device
    finally:
        device.__exit__()


def rolled_back(status: dict[str, Any], release: int, code: str) -> None:
    assert (status["state"], status["job"], status["target"]["release"]) == ("rolled_back", "FAILED", release), status
    assert status["reason"]["code"] == code
    assert status["serving"] == status["committed"]


@pytest.mark.parametrize(("release", "code"), [(2, "golden_differs"), (3, "not_a_model"), (4, "hung")])
def test_what_fails_its_test_never_serves(device: Device, release: int, code: str) -> None:
    if code == "golden_differs":
        device.publish(release, golden_differs(device.folder))
    elif code == "not_a_model":
        sign(device.repo, bytes(range(256)) * 40, release)
    else:
        device.publish(release)
    with Traffic(device.broker.port) as traffic:
        rolled_back(device.load(), release, code)
        assert traffic.after() == {1}
    assert traffic.shown == {1}
    assert traffic.failed == set()


def test_what_crashes_is_tried_again_when_somebody_asks_and_not_before(device: Device) -> None:
    device.publish(5)
    with Traffic(device.broker.port) as traffic:
        first = device.load()
        rolled_back(first, 5, "crashed")
        assert "signal 11" in first["reason"]["message"]
        device.ask("install")  # as the timer does
        after = device.wait(lambda s: s["checked_unix_s"] > first["checked_unix_s"])
        assert (after["state"], after["available"]) == ("rolled_back", None)
        assert after["updated_unix_s"] == first["updated_unix_s"]
        done = device.command("install", "--release", "5")
        assert (done.returncode, "signal 11" in done.stderr) == (2, True), done.stderr
    again = device.status()
    rolled_back(again, 5, "crashed")
    assert again["updated_unix_s"] > first["updated_unix_s"]
    assert traffic.shown == {1}
    assert traffic.failed == set()


def test_what_kills_the_daemon_as_it_is_loaded_has_three_starts(device: Device, tmp_path: Path) -> None:
    device.publish(6)
    die = tmp_path / "die"
    plant = PLANT | {"PLANT_DIE": str(die)}
    device.agent.kill()
    device.restart(plant)
    with Traffic(device.broker.port) as traffic:
        device.ask()
        for _ in range(3):
            device.wait(lambda s: s["step"] == "load")
            assert traffic.after(2) == {1}
            die.touch()
            assert device.agent.process.wait(30) == -11, device.agent.log()
            die.unlink()
            device.drain()
            device.restart(plant)
        status = device.wait(lambda s: s["state"] in ENDED)
        rolled_back(status, 6, "failed_starts")
        assert status["starts"] == 3
        assert traffic.after(20) == {1}
        assert device.agent.process.poll() is None
    assert traffic.shown == {1}
    device.agent.kill()
    device.restart({"PLANT": "7:stuck"})  # that one is mended
    assert device.command("install", "--release", "6").returncode == 0
    assert device.answers() == 6


def test_what_never_comes_back_from_being_loaded_costs_no_message_and_no_restart(device: Device) -> None:
    device.publish(7)
    with Traffic(device.broker.port) as traffic:
        rolled_back(device.load(), 7, "hung")
        device.publish(8)
        assert device.load()["state"] == "committed"
        assert traffic.after() == {8}
    assert traffic.shown == {6, 8}
    assert traffic.failed == set()


@pytest.mark.parametrize(
    ("setting", "code"),
    [("latency_budget_ms = 0.001", "latency_budget"), ("memory_budget_bytes = 1000", "memory_budget")],
)
def test_what_takes_more_than_its_budget_never_serves(setting: str, code: str, tmp_path: Path) -> None:
    with Device(tmp_path, f"{QUICK}{setting}\n") as device:
        device.publish(1)
        with Traffic(device.broker.port) as traffic:
            rolled_back(device.load(), 1, code)
        assert traffic.shown == {0}
        assert traffic.failed == set()
