"""The models in service, and how one takes another's place while messages come.

A model is served by its file of int8d.toml, or by a release of ``agent.updates``. A release is loaded beside what is in
service, looks on, and takes its place between two requests; what it replaced stays loaded until its probation is over,
so that going back takes no longer than that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from agent.config.tables import Config, ModelConfig
from agent.engine import Tuning
from agent.engine.answers import default_folder
from agent.engine.engine import noise
from agent.errors import Int8dError, ModelError
from agent.memory import give_back
from agent.modelfile import Header, Model, read
from agent.notify import Notifier
from agent.predict import Predictor
from agent.replicas import load_replicas, seats_of
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.serving.batcher import Seat
from agent.serving.worker import Workers
from agent.telemetry.drift import Drift
from agent.telemetry.stats import Snapshot, Stats
from agent.updates.probation import Probation, Watch
from agent.updates.shadow import Shadow
from agent.updates.updater import Updates
from agent.updates.vault import open_model

log = logging.getLogger(__name__)
_LOAD_S = 60  # more than a model takes to load, the tuner apart
_VERIFY_S = 300  # more than a slow disk takes to read a release, whose digest is checked before it serves
_WARM_RUNS = 3
_LOOK_S = 0.25  # between two looks at a release on probation
_SETTLE_S = 30.0  # for a request to end that the old model has begun; containment ends longer ones
Tell = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Loaded:
    """A model that can serve. target: the release, None for int8d.toml's own file."""

    target: Target | None
    contents: Model
    predictors: list[Predictor]
    seats: list[Seat]

    def about(self) -> dict[str, str]:
        """What the statistics say of it."""
        first = self.predictors[0]
        return {"version": first.version, "backend": first.engine.backend, "isa": first.engine.isa}


class Models:
    """Loads what int8d.toml names, or the releases that have taken its place. ``predictors``: by name, the first of
    each; the dictionary stays the same object while models are replaced. Raises ``ModelError`` and ``BackendError``.
    """

    def __init__(self, config: Config, drift: Drift, notifier: Notifier, updates: Updates | None = None) -> None:
        self._config, self._drift, self._updates = config, drift, updates
        tuner = config.tuner
        self._folder = (tuner.folder or default_folder()) if tuner.enabled else None
        self._named = {m.name: m for m in config.model}
        self.loaded: dict[str, Loaded] = {}
        targets: dict[str, Target | None] = {}
        if updates is not None:
            notifier.send(f"EXTEND_TIMEOUT_USEC={_VERIFY_S * len(config.model) * 1_000_000}")
            targets = updates.recover()
        for model in config.model:
            # Many models may take longer than a service may take to start.
            takes_s = _LOAD_S * model.replicas + (2 * tuner.budget_s if tuner.enabled else 0)
            notifier.send(f"EXTEND_TIMEOUT_USEC={round(takes_s * 1e6)}")
            self.loaded[model.name] = self._first(model, targets.get(model.name))
            self._show_drift(model.name)
        self.predictors = {name: loaded.predictors[0] for name, loaded in self.loaded.items()}
        self.headers: dict[str, Header] = {name: p.engine.header for name, p in self.predictors.items()}

    def seats(self) -> list[dict[str, Seat]]:
        """By worker, the seat of each model."""
        return seats_of({name: loaded.seats for name, loaded in self.loaded.items()})

    def load(self, name: str, target: Target | None, budget_s: float) -> Loaded:
        """A model, ready to serve. budget_s: of the tuner; 0 uses what it has found before."""
        model = self._named[name]
        tuning = Tuning(self._folder, budget_s) if self._folder is not None else None
        try:
            if target is None:
                return self._of(model, target, read(model.path, self._config.model_limits), tuning)
            assert self._updates is not None
            model = msgspec.structs.replace(model, version=str(target.release.release))
            with open_model(self._updates.file(target), target.release, self._config.updates.key) as path:
                contents = read(path, self._config.model_limits)
            return self._of(model, target, contents, tuning)
        except Refused:
            raise
        except Int8dError as e:
            raise ModelError(f"model '{name}': {e}") from e

    def _of(self, model: ModelConfig, target: Target | None, contents: Model, tuning: Tuning | None) -> Loaded:
        predictors, seats = load_replicas(model, contents, self._config, tuning)
        return Loaded(target, contents, predictors, seats)

    def _first(self, model: ModelConfig, target: Target | None) -> Loaded:
        while True:
            try:
                return self.load(model.name, target, self._config.tuner.budget_s)
            except Int8dError as e:
                if target is None or self._updates is None:
                    raise
                target = self._updates.unloadable(model.name, e)

    def put(self, name: str, loaded: Loaded) -> None:
        """What serves a name now; who computes with it is the caller's to change."""
        self.loaded[name] = loaded
        self.predictors[name] = loaded.predictors[0]
        self.headers[name] = loaded.predictors[0].engine.header
        self._show_drift(name)

    def _show_drift(self, name: str) -> None:
        loaded = self.loaded[name]
        observe = self._drift.watch(name, loaded.contents)
        for predictor in loaded.predictors:
            predictor.observe = observe


class Live:
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
        self._candidates: dict[str, Loaded] = {}
        self._before: dict[str, Loaded] = {}
        # The counts when what serves began to, and when what served before did; none: with the process.
        self._since: dict[str, Snapshot] = {}
        self._since_before: dict[str, Snapshot | None] = {}
        self._about = threading.Lock()

    def load(self, model: str, target: Target | None) -> None:
        loaded = self._models.load(model, target, 0.0)  # the tuner has had its time in the release's test
        for predictor in loaded.predictors:
            inputs = noise(predictor.engine)
            for _ in range(_WARM_RUNS):
                predictor.engine.run(inputs)
        self._candidates[model] = loaded

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
