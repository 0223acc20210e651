"""A release that degrades once it serves, or before, goes back by itself; and by hand, and when it is withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.updates.device import ENDED, Device, copied, prepare
from tests.updates.traffic import Traffic

MODULE = "tests.updates.planted"
PLANT = {"PLANT": "2:raise 3:slow 4:nan 5:shadow"}
SETTINGS = "shadow_s = 0.8\nprobation_s = {}\nmin_free_bytes = 1\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def device(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """It has release 1; some of the next ones go bad."""
    folder = tmp_path_factory.mktemp("device")
    device = Device(folder, SETTINGS.format(1.5), module=MODULE, repo=copied(prepared, folder))
    try:
        device.start(PLANT)
        yield device
    finally:
        device.__exit__()


@pytest.fixture
def patient(prepared: Path, tmp_path: Path) -> Iterator[Device]:
    """It has release 1; the next one's probation is longer than the test."""
    with Device(tmp_path, SETTINGS.format(100), repo=copied(prepared, tmp_path)) as device:
        yield device


def rolled_back(status: dict[str, Any], release: int, code: str, serves: int = 1) -> None:
    assert (status["state"], status["job"], status["target"]["release"]) == ("rolled_back", "FAILED", release), status
    assert status["reason"]["code"] == code, status
    assert status["serving"] == status["committed"]
    assert status["serving"]["release"] == serves


@pytest.mark.parametrize(
    ("release", "code", "fails"),
    [(2, "errors", {"internal"}), (3, "latency", set()), (4, "errors", {"wrong"})],
    ids=["fails on half of the inputs", "slow", "answers NaN"],
)
def test_what_degrades_on_probation_goes_back_by_itself(
    device: Device, release: int, code: str, fails: set[str]
) -> None:
    device.publish(release)
    with Traffic(device.broker.port) as traffic:
        traffic.after(30)  # what it is compared with
        rolled_back(device.load(), release, code)
        assert traffic.after() == {1}
    assert traffic.failed == fails


def test_what_fails_on_live_inputs_does_not_serve_a_single_one(device: Device) -> None:
    device.publish(5)
    with Traffic(device.broker.port) as traffic:
        status = device.load()
        rolled_back(status, 5, "shadow_errors")
        assert status["shadow"]["errors"] > 0
        assert traffic.after() == {1}
    assert traffic.shown == {1}
    assert traffic.failed == set()


def test_what_disagrees_with_the_model_in_service_does_not_serve(tmp_path: Path) -> None:
    with Device(tmp_path, "shadow_s = 2.0\nmin_agreement = 0.9\nmin_free_bytes = 1\n") as device:
        device.publish(1)
        with Traffic(device.broker.port) as traffic:
            status = device.load()
            rolled_back(status, 1, "shadow_disagrees", serves=0)
            assert status["shadow"]["agreement"] < 0.5
        assert traffic.shown == {0}


def test_a_process_that_dies_three_times_on_probation_goes_back(patient: Device) -> None:
    patient.publish(2)
    with Traffic(patient.broker.port) as traffic:
        patient.ask()
        for start in (1, 2, 3):
            status = patient.wait(lambda s: s["step"] == "probation")
            assert status["starts"] == start
            assert traffic.after(2) == {2}
            patient.agent.kill()
            patient.drain()
            patient.restart()
        rolled_back(patient.wait(lambda s: s["state"] in ENDED), 2, "failed_starts")
        assert traffic.after() == {1}
    assert traffic.failed == set()


def test_it_goes_back_by_hand_on_probation_without_a_network(patient: Device) -> None:
    patient.publish(2)
    with Traffic(patient.broker.port) as traffic:
        patient.ask()
        patient.wait(lambda s: s["step"] == "probation")
        patient.web.close()
        done = patient.command("rollback")
        assert done.returncode == 0, done.stderr
        rolled_back(patient.status(), 2, "by_hand")
        assert traffic.after() == {1}
    assert traffic.failed == set()


def test_a_committed_release_goes_back_by_hand_and_does_not_come_again(device: Device) -> None:
    device.publish(8)
    with Traffic(device.broker.port) as traffic:
        assert device.load()["state"] == "committed"
        assert traffic.after() == {8}
        device.ask("rollback")
        rolled_back(device.wait(lambda s: s["state"] == "rolled_back"), 8, "by_hand")
        assert traffic.after() == {1}
        checked = device.status()["checked_unix_s"]
        device.ask()  # as the timer does
        device.wait(lambda s: s["checked_unix_s"] > checked and s["state"] in ENDED)
        assert traffic.after() == {1}
    assert traffic.failed == set()


def test_what_its_publisher_withdraws_goes_back_by_itself(device: Device) -> None:
    device.publish(9)  # higher than what was taken back
    with Traffic(device.broker.port) as traffic:
        assert device.load()["state"] == "committed"
        assert traffic.after() == {9}
        device.repo.revoke(9, "reads sevens as ones")
        status = device.load()
        rolled_back(status, 9, "withdrawn")
        assert "reads sevens as ones" in status["reason"]["message"]
        assert traffic.after() == {1}
    assert traffic.failed == set()
