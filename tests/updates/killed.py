"""The daemon that is killed where KILL_AT says: at a point of ``agent.updates.points.POINTS``, or ``in fetch`` when
the first bytes have come. Or it waits before a switch until the file HOLD_UNTIL is there.

    KILL_AT="before switch" python -m tests.updates.killed run --config int8d.toml
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from agent import cli
from agent.updates import child, points

AT, HOLD = os.environ.get("KILL_AT", ""), os.environ.get("HOLD_UNTIL", "")


def _die(point: str) -> None:
    if point == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    while point == "before switch" and HOLD and not os.path.exists(HOLD):
        time.sleep(0.02)


def _run(step: str, ask: Any, reply: Any, timeout_s: float, progress: Any = lambda done: None, *args: Any,
         **kwargs: Any) -> Any:  # fmt: skip
    def told(done: int) -> None:
        _die(f"in {step}")
        progress(done)

    return _child_run(step, ask, reply, timeout_s, told, *args, **kwargs)


if __name__ == "__main__":
    _child_run, child.run = child.run, _run
    points.reached = _die
    sys.exit(cli.main())
