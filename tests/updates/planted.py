"""The daemon with releases that go bad on this device: ``PLANT`` says which, and how.

    PLANT="2:crash 3:die" python -m tests.updates.planted run --config int8d.toml

In the release's test: ``crash`` ends the child as a bad kernel would (SIGSEGV), ``hang`` never comes back. In the
daemon: ``die`` ends it as it loads the release, once the file ``PLANT_DIE`` is there, ``stuck`` never comes back. On
live inputs, once it looks on: ``shadow`` raises. Once it serves: ``raise`` fails on every second input, ``slow`` takes
20 ms longer, ``nan`` answers with NaN.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from agent import cli
from agent.repository.release import Release, Target
from agent.updates import child

PLANT = {int(n): fault for n, _, fault in (p.partition(":") for p in os.environ.get("PLANT", "").split())}
Run = Callable[[Any], Any]


def _in_test(path: str, release: Release, key: str | None) -> Any:
    """Instead of ``open_model`` in the child."""
    fault = PLANT.get(release.release)
    if fault == "crash":
        signal.raise_signal(signal.SIGSEGV)
    while fault == "hang":
        time.sleep(3600)
    return _open_model(path, release, key)


def _load(self: Any, name: str, target: Target | None, budget_s: float) -> Any:
    fault = None if target is None else PLANT.get(target.release.release)
    if fault == "die":
        while not os.path.exists(os.environ["PLANT_DIE"]):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGSEGV)
    while fault == "stuck":
        time.sleep(3600)
    return _models_load(self, name, target, budget_s)


def _candidate(self: Any, model: str, target: Target | None) -> None:
    _live_load(self, model, target)
    if target is not None and PLANT.get(target.release.release) == "shadow":
        _plant(self._candidates[model], lambda run, asked: _fail())


def _switch(self: Any, model: str) -> None:
    loaded = self._candidates[model]
    fault = _SERVING.get(PLANT.get(loaded.target.release.release, "")) if loaded.target else None
    if fault is not None:
        _plant(loaded, fault)
    _live_switch(self, model)


def _plant(loaded: Any, fault: Callable[[Run, Any], Any]) -> None:
    for predictor in loaded.predictors:
        for engine in (predictor.engine, predictor.batches):
            engine.run = lambda asked, run=engine.run: fault(run, asked)


_count = itertools.count()


def _fail() -> Any:
    raise RuntimeError("planted: the engine fails on this input")


def _raise(run: Run, asked: Any) -> Any:
    return _fail() if next(_count) % 2 else run(asked)


def _slow(run: Run, asked: Any) -> Any:
    time.sleep(0.02)
    return run(asked)


def _nan(run: Run, asked: Any) -> Any:
    answered = run(asked)
    for outputs in answered if isinstance(answered, list) else [answered]:
        for array in outputs.values():
            array[...] = float("nan")
    return answered


_SERVING = {"raise": _raise, "slow": _slow, "nan": _nan}


if __name__ == "__main__":
    if sys.argv[1] in child.STEPS:
        from agent.updates import selftest

        _open_model, selftest.open_model = selftest.open_model, _in_test
        sys.exit(child.main(sys.argv))
    from agent.live import models, service

    child.MODULE = "tests.updates.planted"
    _models_load, models.Models.load = models.Models.load, _load
    _live_load, service.LiveService.load = service.LiveService.load, _candidate
    _live_switch, service.LiveService.switch = service.LiveService.switch, _switch
    sys.exit(cli.main())
