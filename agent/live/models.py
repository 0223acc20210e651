"""The models in service, and how they are loaded: from the files that int8d.toml names, or from releases that have
taken their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agent.config.tables import Config, ModelConfig
from agent.engine import Tuning
from agent.engine.answers import default_folder
from agent.errors import Int8dError, ModelError
from agent.modelfile import Header, Model, read
from agent.notify import Notifier
from agent.predict import Predictor
from agent.replicas import load_replicas, seats_of
from agent.repository.reasons import Refused
from agent.repository.release import Target
from agent.serving.batcher import Seat
from agent.telemetry.drift import Drift
from agent.updates.updater import Updates
from agent.updates.vault import open_model

_LOAD_S = 60  # more than a model takes to load, the tuner apart
_VERIFY_S = 300  # more than a slow disk takes to read a release, whose digest is checked before it serves


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
