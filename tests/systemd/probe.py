"""Runs in the place of the service, under its sandbox, and writes down what it could do: ``probe.json`` in its state.

Each attempt is one that a program which has been taken over would make; what the service needs must work.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWNS = 0x10000000, 0x40000000, 0x00020000


LINES = 10_000  # to the log


def writable() -> list[str]:
    """Folders that take a new file; a folder below one that does is left out, and so are /proc and /sys/fs/cgroup."""
    found = []
    for folder, below, _ in os.walk("/"):
        if folder == "/":
            below.remove("proc")
        try:
            name = os.path.join(folder, f".probe-{os.getpid()}")
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
            os.unlink(name)
        except OSError:
            continue
        found.append(folder)
        below.clear()
    return sorted(found)


def _checked(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _setuid_file() -> None:
    Path("suid").touch()
    os.chmod("suid", 0o4755)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "a user namespace": lambda: _checked(_libc.unshare(_CLONE_NEWUSER)),
    "a network namespace": lambda: _checked(_libc.unshare(_CLONE_NEWNET)),
    "a mount namespace": lambda: _checked(_libc.unshare(_CLONE_NEWNS)),
    "a mount": lambda: _checked(_libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "memory that is writable and executable": _executable_memory,
    "a file that is set-user-ID": _setuid_file,
    "another user": lambda: os.setuid(0),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a real-time priority": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "the host's name": lambda: socket.sethostname("taken"),
    "a signal to the first process": lambda: os.kill(1, signal.SIGCONT),
    "/etc/shadow": lambda: Path("/etc/shadow").read_bytes(),
    "the kernel's log": lambda: Path("/dev/kmsg").read_bytes(),
    "/dev/mem": lambda: Path("/dev/mem").read_bytes(),
    "a kernel setting": lambda: Path("/proc/sys/kernel/core_pattern").write_text("x"),
    "/home": lambda: os.listdir("/home"),
    "/root": lambda: os.listdir("/root"),
}


def _database() -> None:
    with sqlite3.connect("probe.db", isolation_level=None) as database:
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        database.execute("CREATE TABLE IF NOT EXISTS kept (n)")


def _sealed_memory() -> None:
    memory = os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, bytes(4096))
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with open(f"/proc/self/fd/{memory}", "rb") as file:
        mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ).close()
    os.close(memory)


# What the service itself, and the processes that test models for it, may need.
NEEDS: dict[str, Callable[[], object]] = {
    "a database in its state": _database,
    "a key": X25519PrivateKey.generate,
    "a core": lambda: os.sched_setaffinity(0, [max(os.sched_getaffinity(0))]),
    "a lower priority": lambda: os.nice(1),
    "to be killed first": lambda: Path("/proc/self/oom_score_adj").write_text("1000"),
    "a limit on its own data": lambda: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, resource.RLIM_INFINITY)),
    "sealed memory that is mapped": _sealed_memory,
    "a temporary file": lambda: Path("/tmp/probe").write_text("x"),
    "a local socket": lambda: socket.create_server(("127.0.0.1", 0)),
    "the CPUs' folder": lambda: os.listdir("/sys/devices/system/cpu"),
}


def attempt(what: Callable[[], object]) -> str:
    """``done``, or the error."""
    try:
        what()
    except OSError as e:
        return str(e)
    return "done"


def main() -> None:
    status = Path("/proc/self/status").read_text()
    facts = {
        "writable": writable(),
        "attempts": {name: attempt(what) for name, what in ATTEMPTS.items()},
        "needs": {name: attempt(what) for name, what in NEEDS.items()},
        "processes seen": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "itself": os.getpid(),
        "uid": os.getuid(),
        "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith("Cap")],
        "no_new_privileges": "NoNewPrivs:\t1" in status,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    }
    Path("probe.json").write_text(json.dumps(facts))
    for i in range(LINES):
        print("line", i)


if __name__ == "__main__":
    main()
