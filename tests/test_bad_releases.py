"""Releases that must not serve, published for a real daemon: each is rolled back before it has answered anything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.updates import identity
from tests.agent_process import ROOT
from tests.test_vault import holding
from tests.updates.bad import golden_differs
from tests.updates.device import QUICK, Device
from tests.variants import variant

# By reason: settings of [updates], the fault that is planted in loading it, and the file where it is not a good one.
CASES: dict[str, tuple[str, str, Callable[[Path], Path] | None]] = {
    "golden_differs": ("", "", golden_differs),
    "latency_budget": ("latency_budget_ms = 0.0001\n", "", None),
    "memory_budget": ("memory_budget_bytes = 1000\n", "", None),
    "crashed": ("", "crash", None),
    "hung": ("test_timeout_s = 3\n", "hang", None),
}


@pytest.mark.parametrize("reason", CASES)
def test_a_bad_release_is_rolled_back_before_it_serves(tmp_path: Path, stack: ExitStack, reason: str) -> None:
    settings, fault, file = CASES[reason]
    device = Device(tmp_path, QUICK + settings, module="tests.planted_step" if fault else "agent.cli")
    stack.push(device)
    device.start({"PLANT_STEP": fault, "PYTHONPATH": str(ROOT)} if fault else {})
    device.publish(2, file(tmp_path) if file else None)
    status = device.load()
    assert (status["state"], status["reason"]["code"]) == ("rolled_back", reason)
    assert status["serving"].get("release", 0) == 0
    assert device.answers() == 0
    assert device.agent.process.poll() is None


def test_an_encrypted_release_serves_and_its_plaintext_is_on_no_disk(tmp_path: Path, stack: ExitStack) -> None:
    recipient = identity.create(str(tmp_path / "box1.age"))
    device = stack.enter_context(Device(tmp_path, f'{QUICK}key = "{tmp_path}/box1.age"\n'))
    device.publish(3, recipients=(recipient,))
    status = device.load()
    assert status["state"] == "committed"
    assert min(status["test"].values()) > 0  # the model of int8d.toml was timed beside it
    assert device.answers() == 3
    plain = variant(tmp_path / "files", 3).read_bytes()
    assert holding(tmp_path / "files", plain[-2048:])  # the search finds it where it is
    assert holding(tmp_path / "state", plain[-2048:]) == []
    device.agent.kill()
    device.restart()
    assert device.answers() == 3
    assert holding(tmp_path / "state", plain[-2048:]) == []


def test_a_release_for_another_devices_key_is_not_taken(tmp_path: Path, stack: ExitStack) -> None:
    identity.create(str(tmp_path / "box1.age"))
    device = stack.enter_context(Device(tmp_path, f'{QUICK}key = "{tmp_path}/box1.age"\n'))
    device.publish(3, recipients=(identity.create(str(tmp_path / "other.age")),))
    status = device.load()
    assert (status["state"], status["reason"]["code"]) == ("rolled_back", "no_key")
    assert identity.recipients(str(tmp_path / "box1.age"))[0] in status["reason"]["message"]
    assert device.answers() == 0
