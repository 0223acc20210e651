"""Models are replaced while messages come.

A release is loaded beside what is in service, looks on, and takes its place between two requests; what it replaced
stays loaded until its probation is over, so that going back takes no longer than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from agent.config.tables import Config
from agent.engine.engine import noise
from agent.live.apart import Apart
from agent.live.models import Loaded, Models
from agent.live.probation import Probation, Watch
from agent.live.shadow import Shadow
from agent.memory import give_back
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.serving.worker import Workers
from agent.telemetry.stats import Snapshot, Stats

log = logging.getLogger(__name__)
_WARM_RUNS = 3
_LOOK_S = 0.25  # between two looks at a release on probation
_SETTLE_S = 30.0  # for a request to end that the old model has begun; containment ends longer ones
Tell = Callable[[dict[str, float]], None]


class LiveService:
    """``agent.updates.service.Service``: replaces models under traffic. changed(name): after each replacement.

    budgets_s: by model, of a run; 0 is none. Each model is used by one thread.
    """

    def __init__(
        self,
        models: Models,
        workers: Workers,
        stats: Stats,
        config: Config,
        changed: Callable[[str], None],
        budgets_s: Mapping[str, float],
    ) -> None:
        self._models, self._workers, self._stats, self._settings = models, workers, stats, config.updates
        self._changed, self._budgets_s = changed, budgets_s
        self._apart: dict[str, Apart[Loaded]] = {}
        self._candidates: dict[str, Loaded] = {}
        self._before: dict[str, Loaded] = {}
        # The counts when what serves began to, and when what served before did; none: with the process.
        self._since: dict[str, Snapshot] = {}
        self._since_before: dict[str, Snapshot | None] = {}
        self._about = threading.Lock()

    def load(self, model: str, target: Target | None) -> None:
        """Where it does not come to its end in time, a thread is left behind; the service goes on without it."""
        apart = self._apart.pop(model, None) or Apart(f"load-{model}")
        seconds = self._settings.test_timeout_s
        try:
            loaded = apart.run(lambda: self._warm(model, target), seconds)
        except TimeoutError:
            raise Refused("hung", f"it was not loaded and warm within updates.test_timeout_s, {seconds:g} s") from None
        finally:
            if not apart.busy:
                self._apart[model] = apart
        self._candidates[model] = loaded

    def _warm(self, model: str, target: Target | None) -> Loaded:
        loaded = self._models.load(model, target, 0.0)  # the tuner has had its time in the release's test
        for predictor in loaded.predictors:
            inputs = noise(predictor.engine)
            for _ in range(_WARM_RUNS):
                predictor.engine.run(inputs)
        return loaded

    def shadow(self, model: str, tell: Tell, stop: threading.Event) -> None:
        shadow = Shadow(self._candidates[model].predictors[0], self._models.loaded[model].predictors)
        try:
            left = self._settings.shadow_s
            while left > 0 and not stop.wait(min(_LOOK_S, left)):
                left -= _LOOK_S
                tell(shadow.report())
                if shadow.verdict(0.0) is not None:
                    break
        finally:
            shadow.stop()
        tell(shadow.report())
        why = shadow.verdict(self._settings.min_agreement)
        if why is not None:
            raise why

    def switch(self, model: str) -> None:
        self._before[model] = self._models.loaded[model]
        self._serve(model, self._candidates.pop(model))

    def probation(self, model: str, tell: Tell, stop: threading.Event) -> None:
        watch = Watch(self._models.loaded[model].predictors)
        now = self._stats.snapshot()
        # After a restart there is nothing to compare with.
        since = self._since_before[model] if model in self._before else now
        probation = Probation(self._settings, model, now, since, self._budgets_s.get(model, 0.0), watch)
        try:
            while not stop.wait(min(_LOOK_S, self._settings.probation_s)):
                done = probation.done()
                why = probation.judge(self._stats.snapshot())
                tell(probation.report())
                if why is not None:
                    raise why
                if done:
                    return
        finally:
            watch.stop()

    def back(self, model: str, target: Target | None) -> None:
        self._candidates.pop(model, None)
        before = self._before.pop(model, None)
        if self._models.loaded[model].target != target:
            if before is None or before.target != target:
                before = self._models.load(model, target, 0.0)
            self._serve(model, before)
        self._free(model)

    def keep(self, model: str) -> None:
        self._before.pop(model, None)
        self._free(model)

    def _serve(self, model: str, loaded: Loaded) -> None:
        self._since_before[model] = self._since.get(model)
        self._since[model] = self._stats.snapshot()
        self._models.put(model, loaded)
        self._workers.replace(model, loaded.seats)
        with self._about:
            self._stats.about["models"][model] = loaded.about()  # in one step, for each model has a thread of its own
        self._changed(model)

    def _free(self, model: str) -> None:
        """What nobody serves any more: its memory goes back to the system, or a year of updates would keep it all."""
        if not self._workers.settled(_SETTLE_S):
            log.warning("model %s: a request still runs on what was replaced %g s ago", model, _SETTLE_S)
        give_back()
