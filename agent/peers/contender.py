"""One contender as a process: ``python -m agent.peers.contender``, started by ``agent.peers.judge``.

It reads JSON lines from stdin and answers each with one on stdout: first the ``Task``, which makes the runner and runs
it once; then ``{"slice": seconds}``, answered with the nanoseconds of each call, until stdin ends. For int8d also
``{"peak": true}``. Runtimes that print to stdout print to stderr here.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import msgspec


class Task(msgspec.Struct):
    """name: ``int8d`` or a peer. path: the model file. cores: where to run, none for anywhere. isa: the most that it
    may use. outputs: the file that the first run's outputs are written to (.npz).
    tuner_folder: where int8d looks for the tuner's answer."""

    name: str
    path: str
    threads: int
    cores: list[int]
    isa: str | None
    outputs: str
    tuner_folder: str | None = None


def main() -> None:
    """Serves until stdin ends; an exception is answered with ``{"error": …}`` and ends the process."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        task = msgspec.json.decode(sys.stdin.readline(), type=Task)
        contender = _Contender(task)
        answer(contender.described)
        for line in sys.stdin:
            answer(contender.obey(json.loads(line)))
    except Exception as e:  # whatever a runtime raises is for the judge to show
        answer({"error": " ".join(f"{e}".split())[:500] or type(e).__name__})


def _end_with_parent() -> None:
    """A judge that is killed can't end its contenders, and one that is stopped would stay for ever."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


class _Contender:
    def __init__(self, task: Task) -> None:
        # All of this before any runtime is imported: they look at it once, when their pools are made.
        from agent.peers import limits

        if task.cores:
            os.sched_setaffinity(0, task.cores)
        limit = limits.keep_to(task.name, task.isa)

        import numpy as np

        from agent.engine import Tuning, load, noise
        from agent.modelfile import read
        from agent.peers import runners

        model = read(task.path)
        tuning = Tuning(task.tuner_folder) if task.tuner_folder and task.name == "int8d" else None
        engine = load(model, task.threads, spin_us=2000, tuning=tuning)
        inputs = dict(model.golden[0].inputs) if model.golden else noise(engine)
        self.described: dict[str, Any] = {"limit": limit}
        if task.name == "int8d":
            self.isa = engine.isa
            self._run = lambda: engine.run(inputs)
            outputs = engine.run(inputs)
            macs = sum(s.macs for s in engine.steps())
            self.described |= {"model": model.header.name, "isa": engine.isa, "macs": macs, "ran": engine.isa}
        else:
            del engine
            runner = runners.make(task.name, model, inputs, task.threads)
            self._run = runner.run
            runner.run()
            outputs = dict(runner.outputs())
            self.described |= {"version": runners.version(task.name), "ran": runner.ran}
        np.savez(task.outputs, allow_pickle=False, **outputs)

    def obey(self, order: Mapping[str, Any]) -> Mapping[str, Any]:
        from agent.peers import timing

        if "peak" in order:
            from agent.engine import native

            return {"peak": native.peak_gmacs(self.isa)}
        return {"times": timing.timed_slice(self._run, order["slice"])}


if __name__ == "__main__":
    main()
