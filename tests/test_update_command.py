"""``int8d update``, with a daemon that runs and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.agent_process import DIGITS, ROUTE
from tests.updates.device import ENDED, QUICK, Device


def said(device: Device, *arguments: str) -> Any:
    """What it prints as JSON."""
    done = device.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    (status,) = json.loads(done.stdout)
    return status


def refused(device: Device, *arguments: str) -> str:
    done = device.command(*arguments)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
    return done.stderr


def test_with_a_daemon_it_does_what_is_asked(tmp_path: Path) -> None:
    with Device(tmp_path, QUICK) as device:
        assert said(device, "status")["state"] == "idle"
        assert "runs the file that int8d.toml names" in refused(device, "rollback")
        device.publish(1)
        checked = said(device, "check")
        assert (checked["state"], checked["available"]["release"]) == ("idle", 1)
        done = device.command("install")
        assert done.returncode == 0, done.stderr
        assert "digits: committed" in done.stdout
        for state in ("fetching", "pending: probation"):
            assert state in done.stderr
        assert device.answers() == 1
        assert said(device, "install", "--release", "1")["serving"]["release"] == 1  # it has it
        assert "the repository has no release 7" in refused(device, "install", "--release", "7")
        device.publish(2)
        assert said(device, "install", "--release", "2", "digits")["committed"]["release"] == 2
        assert "int8d update rollback" in refused(device, "install", "--release", "1")
        assert said(device, "rollback")["serving"]["release"] == 1
        assert device.answers() == 1
        status = device.command("status").stdout
        for text in ("rolled_back", "release 1 (", "by_hand"):
            assert text in status
        assert "no model 'cats'" in refused(device, "status", "cats")


def test_without_a_daemon_the_next_start_goes_on_with_what_was_installed(tmp_path: Path) -> None:
    with Device(tmp_path, QUICK) as device:
        device.publish(1)
        assert device.load()["state"] == "committed"
        device.publish(2)
        assert device.agent.terminate() == 0
        assert said(device, "status")["committed"]["release"] == 1
        assert said(device, "check")["available"]["release"] == 2
        done = device.command("install")
        assert done.returncode == 0, done.stderr
        assert "serves from its next start" in done.stderr
        status = said(device, "status")
        assert (status["state"], status["serving"]["release"]) == ("pending", 1)
        device.drain()
        device.restart()
        assert device.wait(lambda s: s["state"] in ENDED and s["target"]["release"] == 2)["state"] == "committed"
        assert device.answers() == 2
        assert device.agent.terminate() == 0
        assert said(device, "rollback")["serving"]["release"] == 1
        device.publish(3)
        assert said(device, "install")["state"] == "pending"
        dropped = said(device, "rollback")
        assert (dropped["state"], dropped["reason"]["code"], dropped["target"]["release"]) == (
            "rolled_back",
            "by_hand",
            3,
        )
        device.restart()
        assert device.answers() == 1


def test_without_a_daemon_what_the_other_models_serve_stays(tmp_path: Path) -> None:
    other = f'[[model]]\nname = "other"\npath = "{DIGITS}"\n'
    with Device(tmp_path, QUICK, rest=ROUTE + other) as device:
        device.publish(1)
        device.publish(2, name="other")
        assert device.command("install", "other").returncode == 0
        assert device.agent.terminate() == 0
        assert device.command("install", "digits").returncode == 0
        device.restart()
        device.wait(lambda s: s["state"] in ENDED)
        found = json.loads(device.command("status", "--json").stdout)
        assert [(s["model"], s["state"], s["committed"]["release"]) for s in found] == [
            ("digits", "committed", 1), ("other", "committed", 2)
        ]  # fmt: skip
