"""A step's child with faults planted: what ``PLANT_STEP`` says happens when it reads a model.

    PLANT_STEP=crash python -m tests.planted_step test PARENT

``crash`` ends it as a bad kernel would (SIGSEGV), ``hang`` never comes back, ``freeze`` neither, and keeps the
interpreter's lock; ``allocate`` takes memory without end, ``fill`` the disk, in a file
``filled``. Besides, there are steps that need no model: see ``Ask``. ``python -m tests.planted_step run …`` is the
daemon whose children are these.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from agent import cli
from agent.repository.reasons import Refused
from agent.updates import child


class Ask(msgspec.Struct):
    """do: what this step does. text: what it is about."""

    do: str
    text: str = ""


class Said(msgspec.Struct):
    text: str


def perform(ask: Ask, progress: child.Progress) -> Said | dict[str, int]:
    if ask.do == "progress":
        for done in range(1, 6):
            progress(done)
    elif ask.do == "print":
        print("this is no reply", flush=True)
        os.system("echo nor this")
    elif ask.do == "shout":
        sys.stderr.write("words " * 200_000)
    elif ask.do == "refuse":
        raise Refused("truncated", ask.text)
    elif ask.do == "raise":
        raise ValueError(ask.text)
    elif ask.do == "exit":
        os._exit(3)
    elif ask.do == "linger":
        # Its reply is out, but it does not end.
        import atexit

        atexit.register(time.sleep, 3600)
    elif ask.do == "nonsense":
        return {"nonsense": 1}
    elif ask.do == "limits":
        status = Path("/proc/self/status").read_text()
        return Said(" ".join([
            str(resource.getrlimit(resource.RLIMIT_CORE)[0]), str(os.nice(0)),
            Path("/proc/self/oom_score_adj").read_text().strip(),
            next(line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs")),
        ]))  # fmt: skip
    elif ask.do in FAULTS:
        if ask.text:
            Path(ask.text).write_text(str(os.getpid()))
        FAULTS[ask.do]()
    return Said(ask.text)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _stopped() -> None:
    """As one that is stopped before it can ignore it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def _allocate() -> None:
    kept = []
    while True:
        kept.append(b"x" * (16 << 20))


def _fill() -> None:
    with open("filled", "wb", buffering=0) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))


FAULTS = {
    "fill": _fill,
    "crash": lambda: signal.raise_signal(signal.SIGSEGV),
    "killed": lambda: signal.raise_signal(signal.SIGKILL),
    "stopped": _stopped,
    "hang": _hang,
    "freeze": lambda: pow(3, 10**9),
    "allocate": _allocate,
}


def _planted(*args: Any, **kwargs: Any) -> Any:
    FAULTS[os.environ["PLANT_STEP"]]()
    raise AssertionError("the fault did nothing")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        child.MODULE = "tests.planted_step"
        sys.exit(cli.main())
    child.STEPS["planted"] = "tests.planted_step"
    if "PLANT_STEP" in os.environ:
        from agent.updates import selftest

        selftest.read = _planted
    sys.exit(child.main(sys.argv))
