"""Boots the root file system with systemd as its first process, runs the scenarios in it, and returns what they saw."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
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


def boot(rootfs: Path, program: Path, beside: Path, results: Path, names: str = "", timeout: float = 400) -> dict:
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
            raise AssertionError(f"the container did not end within {timeout} s: {(e.output or b'').decode()}") from e
    said = done.stdout.decode(errors="replace")
    facts = results / "facts.json"
    if not facts.exists():
        output = results / "output.txt"
        if not output.exists():
            raise Unavailable(f"no systemd boots in a container here: {said[-1000:]}")
        raise AssertionError(f"the scenarios ended without results: {output.read_text()[-3000:]}")
    return json.loads(facts.read_text())


@contextmanager
def _own_cgroups() -> Iterator[object]:
    """Gives a function that puts the calling process into control groups of its own, where groups can be made.

    A container whose root is ours would see the services of another container, booted beside it, as its own.
    """
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        name = controllers.removeprefix("name=")
        if name not in ("", "systemd", "memory"):
            continue
        for base in ([Path("/sys/fs/cgroup", name)] if name else [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]):
            group = Path(f"{base}{path}") / f"int8d-test-{os.getpid()}"
            if (base / "cgroup.procs").exists():
                with suppress(OSError):
                    group.mkdir()
                    made.append(group)
                break

    def enter() -> None:
        for group in made:
            (group / "cgroup.procs").write_text("0")

    try:
        yield enter
    finally:
        for group in made:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)
