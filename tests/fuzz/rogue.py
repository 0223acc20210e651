"""A target that does all that none may do, a thing a case: the driver is tested on it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from agent.errors import ModelError
from tests.fuzz.driver import MOST_BYTES
from tests.fuzz.mutations import Rng

OUTCOMES = ["", "refused", "ValueError: a bug", "ended with -11", "10 s", "MiB", "files are left", "written outside",
            "says nothing", ""]  # fmt: skip


class Rogue:
    """The first byte of a case's file is the case's number."""

    name = "rogue"
    allowed: tuple[type[Exception], ...] = (ModelError,)

    def prepare(self) -> None:
        pass

    def make(self, rng: Rng) -> bytes:
        return bytes(rng.bit_generator.seed_seq.entropy[1:])  # type: ignore[attr-defined]

    def run(self, path: Path, rng: Rng) -> None:
        case = path.read_bytes()[0]
        if case == 1:
            raise ModelError("refused")
        if case == 2:
            raise ValueError("a bug")
        if case == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif case == 4:
            signal.setitimer(signal.ITIMER_PROF, 0.01)  # as after 10 seconds
            while True:
                pass
        elif case == 5:
            grown = [bytes([1]) * (64 << 20) for _ in range((MOST_BYTES >> 26) + 4)]
            raise AssertionError(len(grown))
        elif case == 6:
            path.with_name("half").write_bytes(b"written")
            raise ModelError("refused too late")
        elif case == 7:
            beside = path.parents[1] / "beside"
            beside.write_bytes(b"")
            beside.unlink()
        elif case == 8:
            raise ModelError("")
