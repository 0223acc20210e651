"""A Debian 12 with systemd and mosquitto, as a folder to boot containers from. Built once, and never written to after.

It lies in ``.cache/`` of the repository; building takes 40 s and the network.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_CACHE = Path(__file__).parents[2] / ".cache"
_SUITE, _PACKAGES = "bookworm", "systemd,systemd-sysv,dbus,python3,mosquitto"
PYTHON = "3.11"  # bookworm's; what is put into the container must be made for it


class Unavailable(Exception):
    """No container can be booted here; the message says why, and what to do."""


def rootfs() -> Path:
    """The folder, built where it is not there yet. Raises ``Unavailable``."""
    if os.geteuid() != 0:
        raise Unavailable("booting a container needs root")
    for program in ("systemd-nspawn", "debootstrap"):
        if shutil.which(program) is None:
            raise Unavailable(f"no {program} here: apt-get install systemd-container debootstrap")
    folder = _CACHE / f"rootfs-{_SUITE}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once build it once
        if not folder.is_dir():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    for left in folder.parent.glob(f"{folder.name}.new*"):
        subprocess.run(["umount", "--quiet", left / "proc"], stderr=subprocess.DEVNULL)  # of an interrupted debootstrap
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new", dir=folder.parent))
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(new)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        shutil.rmtree(new, ignore_errors=True)
        raise Unavailable(f"debootstrap failed: {done.stdout[-500:]}")
    # Ours is started by the scenarios; Debian's would take port 1883 at boot.
    (new / "etc/systemd/system/mosquitto.service").symlink_to("/dev/null")
    shutil.rmtree(new / "var/cache/apt", ignore_errors=True)
    new.chmod(0o755)
    new.rename(folder)  # at once: an interrupted build leaves no folder of this name
