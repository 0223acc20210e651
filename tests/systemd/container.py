"""Boots the root file system with systemd as its first process, runs the scenarios in it, and returns what they saw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.agent_process import ROOT
from tests.systemd.rootfs import Unavailable

_DRIVER = """\
[Unit]
Description=The scenarios of int8d's tests
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=PYTHONPATH=/opt/tests
ExecStart=/opt/int8d/bin/python -m tests.systemd.scenarios /results {names}
StandardOutput=file:/results/output.txt
StandardError=inherit
"""

# nspawn mounts the controllers of cgroup v1 read-only; without this one MemoryMax would do nothing.
_INIT = """\
test ! -d /sys/fs/cgroup/memory || mount -o remount,rw,bind /sys/fs/cgroup/memory
exec /lib/systemd/systemd systemd.unit=int8d-scenarios.service
"""


def boot(rootfs: Path, program: Path, beside: Path, results: Path, names: str = "", timeout: float = 360) -> dict:
    """What each scenario saw, by name.

    rootfs: stays as it is; the container writes to memory above it. program: lies at /opt/int8d. beside: a folder of
    Python packages that the scenarios need and the program does not. results: an empty folder; the journal stays there.
    Raises ``Unavailable`` where no container starts, and AssertionError where it ended without results.
    """
    etc = results / "etc-int8d"
    etc.mkdir()
    (etc / "digits.int8.safetensors").symlink_to("/opt/tests/models/zoo/digits.int8.safetensors")
    etc.chmod(0o755)
    driver = results / "int8d-scenarios.service"
    driver.write_text(_DRIVER.format(names=names))
    mounts = {
        program: "/opt/int8d",
        beside: "/opt/tests",
        ROOT / "tests": "/opt/tests/tests",
        ROOT / "systemd": "/opt/tests/systemd",
        ROOT / "models" / "zoo": "/opt/tests/models/zoo",
        ROOT / "systemd" / "int8d.service": "/etc/systemd/system/int8d.service",
        driver: "/etc/systemd/system/int8d-scenarios.service",
    }
    command = [
        "systemd-nspawn", "--quiet", "--directory", str(rootfs), "--volatile=overlay", "--register=no", "--keep-unit",
        "--private-network", "--console=pipe", "--machine", f"int8d-{os.getpid()}",
        *(f"--bind-ro={source}:{target}" for source, target in mounts.items()),
        f"--bind={results}:/results", f"--bind={etc}:/etc/int8d",
        "/bin/sh", "-c", _INIT,
    ]  # fmt: skip
    with _own_cgroups() as enter:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=timeout, preexec_fn=enter, start_new_session=True)  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise AssertionError(
                f"the container did not end within {timeout} s: {_read(results / 'output.txt')}"
            ) from e
    said = done.stdout.decode(errors="replace")
    facts = results / "facts.json"
    if not facts.exists():
        if not (results / "output.txt").exists():
            raise Unavailable(f"no systemd boots in a container here: {said[-1000:]}")
        raise AssertionError(f"the scenarios ended without results: {_read(results / 'output.txt')}")
    return json.loads(facts.read_text())


def _read(file: Path) -> str:
    return file.read_text(errors="replace")[-3000:] if file.exists() else ""


@contextmanager
def _own_cgroups() -> Iterator[Callable[[], None]]:
    """Gives a function that puts the calling process into control groups of its own; ends what is left in them.

    A container whose groups hang below ours would take the services of another one, booted beside it, for its own.
    """
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd", "memory"):
            name = controllers.removeprefix("name=") or "unified"
            base = Path("/sys/fs/cgroup", name)
            if name == "unified" and not base.exists():
                base = base.parent
            groups.append(Path(f"{base}{path}") / f"int8d-test-{os.getpid()}")
    for group in groups:
        group.mkdir()

    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    try:
        yield enter
    finally:
        for group in groups:
            _end(group)


def _end(group: Path) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        left = [int(pid) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()]
        if not left:
            break
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for folder, _, _ in os.walk(group, topdown=False):
        os.rmdir(folder)
