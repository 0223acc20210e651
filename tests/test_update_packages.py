"""What updates need beyond the program: asked for at the start, and kept out of the process that serves."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.updates import identity
from tests.agent_process import DIGITS
from tests.systemd.installed import install
from tests.updates.device import QUICK, Device

HEAVY = {"tuf", "securesystemslib", "cryptography", "urllib3", "requests", "pyrage"}
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def _run(folder: Path, site: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    """``int8d run`` with the packages of ``site`` alone."""
    config = folder / "int8d.toml"
    (folder / "root.json").write_text("{}")
    config.write_text(
        f'device = "box1"\nstate_folder = "{folder}/state"\n[[model]]\nname = "digits"\npath = "{DIGITS}"\n'
        f'[updates]\nrepository = "https://models.example"\nroot = "{folder}/root.json"\n{more}'
    )
    command = [sys.executable, "-S", "-P", "-m", "agent.cli", "run", "--config", str(config)]
    return subprocess.run(
        command, env={"PYTHONPATH": str(site)}, cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program without any of its extras."""
    folder = tmp_path_factory.mktemp("installed")
    return install(folder, str(folder), PYTHON, extras=())


def test_a_device_without_the_packages_says_at_its_start_what_to_install(tmp_path: Path, installed: Path) -> None:
    done = _run(tmp_path, installed)
    assert done.returncode == 78
    assert "needs tuf and cryptography, not installed here: pip install 'int8d[updates]'" in done.stdout + done.stderr


def test_a_device_with_a_key_needs_age_too(tmp_path: Path, installed: Path) -> None:
    identity.create(str(tmp_path / "box1.age"))
    done = _run(tmp_path, installed, f'key = "{tmp_path}/box1.age"\n')
    assert done.returncode == 78
    assert "needs tuf and cryptography and pyrage, not installed" in done.stdout + done.stderr


def _imported(log: str) -> set[str]:
    """Top packages that the process has imported, as the interpreter tells on its standard error."""
    return {name.split(".")[0] for name in re.findall(r"^import time:[^|]*\|[^|]*\|\s*([\w.]+)", log, re.MULTILINE)}


def _device(folder: Path, stack: ExitStack, updates: str = QUICK) -> Device:
    device = Device(folder, updates)
    stack.push(device)
    device.start({"PYTHONPROFILEIMPORTTIME": "1"})
    return device


def test_what_verifies_a_repository_is_never_in_the_process_that_serves(tmp_path: Path, stack: ExitStack) -> None:
    device = _device(tmp_path, stack)
    device.publish(1)
    assert device.load()["state"] == "committed"
    imported = _imported(device.agent.log())
    mapped = Path(f"/proc/{device.agent.process.pid}/maps").read_text()
    assert "agent" in imported
    assert imported & HEAVY == set()
    assert "/numpy/" in mapped
    assert "/cryptography/" not in mapped


def test_an_encrypted_release_brings_in_age_alone(tmp_path: Path, stack: ExitStack) -> None:
    recipient = identity.create(str(tmp_path / "box1.age"))
    device = _device(tmp_path, stack, f'{QUICK}key = "{tmp_path}/box1.age"\n')
    device.publish(1, recipients=(recipient,))
    assert device.load()["state"] == "committed"
    assert device.answers() == 1
    assert _imported(device.agent.log()) & HEAVY == {"pyrage"}
