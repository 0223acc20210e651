"""The daemon with faults planted: a payload that begins with ``PLANT`` does to its worker what it says.

    python -m tests.planted run --config int8d.toml

``PLANT crash`` ends the process as a bad kernel would (SIGSEGV). ``PLANT sleep 90`` computes for 90 seconds, and goes
on as a payload that can't be understood. ``PLANT hang`` never comes back; ``PLANT freeze`` neither, and keeps the
interpreter's lock, so that no other thread of the process runs. All else is served as ever.
"""

from __future__ import annotations

import signal
import sys
import time

from agent import cli
from agent.wire import kinds

_kind_of = kinds.kind_of


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
    return _kind_of(payload, content_type)


if __name__ == "__main__":
    kinds.kind_of = _planted
    sys.exit(cli.main())
