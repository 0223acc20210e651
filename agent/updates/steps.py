"""The steps of an update that are done in child processes, as the configuration says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.config.tables import Config
from agent.engine.answers import default_folder
from agent.repository import fetch, find
from agent.repository.release import Release, Target
from agent.updates import child, selftest
from agent.updates.journal import Record
from agent.updates.store import Store

_FIND_S = 600.0  # metadata is a few kilobytes; the transport says sooner when it is slow


class Children:
    """``agent.updates.updater.Steps``."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._models = {m.name: m for m in config.model}
        self._budgets_s = budgets_s(config)

    def find(self, model: str, record: Record, wanted: int | None, stop: threading.Event) -> find.Found:
        """What is due. Raises ``Refused``."""
        committed = record.committed
        ask = find.Ask(
            folder=str(self._store.folder),
            device=self._config.device,
            model=model,
            settings=self._config.updates,
            broker=self._config.broker,
            committed=max(record.floor, 0 if committed is None else committed.release.release),
            committed_sha256="" if committed is None else committed.sha256,
            wanted=wanted,
            refused=list(record.refused),
        )
        return child.run("find", ask, find.Found, _FIND_S, stop=stop, died="internal", late="too_slow")

    def fetch(self, target: Target, part: Path, progress: Callable[[int], None], stop: threading.Event) -> None:
        """As ``service.Steps``."""
        config = self._config
        ask = fetch.Ask(target=target, part=str(part), device=config.device, settings=config.updates,
                        broker=config.broker)  # fmt: skip
        child.run("fetch", ask, fetch.Fetched, 0, progress, stop, died="internal")

    def test(
        self, model: str, target: Target, file: Path, serving: Target | None, stop: threading.Event
    ) -> dict[str, float]:
        """As ``service.Steps``."""
        config, settings = self._config, self._config.updates
        tuner = config.tuner
        if serving is None:
            in_service = selftest.ModelFile(self._models[model].path, Release(model, 0))
        else:
            in_service = selftest.ModelFile(str(self._store.file(serving)), serving.release)
        ask = selftest.Ask(
            file=selftest.ModelFile(str(file), target.release),
            model=self._models[model],
            in_service=in_service,
            key=settings.key,
            limits=config.limits,
            model_limits=config.model_limits,
            tuner=msgspec.structs.replace(tuner, folder=tuner.folder or str(default_folder())),
            spin_us=config.spin_us,
            latency_budget_ms=self._budgets_s.get(model, 0.0) * 1000,
            memory_budget_bytes=settings.memory_budget_bytes,
        )
        found = child.run("test", ask, selftest.Tested, settings.test_timeout_s, stop=stop)
        return {"median_us": found.median_us, "reference_us": found.reference_us,
                "resident_bytes": float(found.resident_bytes), "golden": float(found.golden)}  # fmt: skip


def budgets_s(config: Config) -> dict[str, float]:
    """By model, how long a run may take; a model without a budget is not in it."""
    if config.updates.latency_budget_ms:
        return {m.name: config.updates.latency_budget_ms / 1000 for m in config.model}
    found: dict[str, float] = {}
    for route in config.route:
        if route.deadline_ms is not None:
            found[route.model] = min(found.get(route.model, float("inf")), route.deadline_ms / 1000)
    return found
