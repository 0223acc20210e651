"""The daemon with faults planted: a payload that begins with ``PLANT`` does to its worker what it says.

    python -m tests.planted run --config int8d.toml

``PLANT crash`` ends the process as a bad kernel would (SIGSEGV). ``PLANT sleep 90`` computes for 90 seconds, and goes
on as a payload that can't be understood. ``PLANT hang`` never comes back; ``PLANT freeze`` neither, and keeps the
interpreter's lock, so that no other thread of the process runs. ``PLANT allocate 1024`` takes so many MiB, and goes on
as ``sleep`` does. All else is served as ever. With ``PLANT_LOAD_S`` in the environment, each model takes so many
seconds longer to load.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from agent import cli
from agent.live import models
from agent.modelfile import Model
from agent.wire import kinds

_kind_of, _read = kinds.kind_of, models.read


def _planted(payload: bytes, content_type: str | None) -> kinds.Kind:
    if payload.startswith(b"PLANT "):
        what, *rest = payload.decode().split()[1:]
        if what == "crash":
            signal.raise_signal(signal.SIGSEGV)  # in this thread: it must not get a step further
        elif what == "sleep":
            time.sleep(float(rest[0]))
        elif what == "hang":
            while True:
                time.sleep(3600)
        elif what == "freeze":
            pow(3, 10**9)  # hours in one instruction of the interpreter
        elif what == "allocate":
            b"x" * (int(rest[0]) << 20)
    return _kind_of(payload, content_type)


def _slow(*args: Any, **kwargs: Any) -> Model:
    time.sleep(float(os.environ.get("PLANT_LOAD_S", "0")))
    return _read(*args, **kwargs)


if __name__ == "__main__":
    kinds.kind_of, models.read = _planted, _slow
    sys.exit(cli.main())
