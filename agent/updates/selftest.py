"""Step ``test``: whether a release runs on this box, as it must before the service loads it.

In a child process, which a bad model can crash, hang or fill without harm: the file is read and validated, loaded just
as the service will load it, the tuner included, so that the service finds the tuner's answers; its golden inputs must
give the golden outputs, byte for byte, alone and in batches, from every replica; and what it takes must lie within the
budgets.

Latency is the best of the medians of several slices of runs, in turns with the model in service where that is given:
the box is busy serving while this runs at low priority, and a model that is fast enough has some slice in peace, while
one that is too slow has none. It has more slices before it is refused than a fast one takes.
"""

from __future__ import annotations

import importlib
import resource
import statistics
import time
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.config.tables import Config, ModelConfig, Tuner
from agent.engine import Batches, Engine, Tuning
from agent.errors import Int8dError
from agent.memory import give_back
from agent.modelfile import Golden, read
from agent.replicas import load_replicas, pinned
from agent.repository.reasons import Refused
from agent.repository.release import Release
from agent.repository.transport import Progress
from agent.serving.batcher import Seat
from agent.telemetry.stats import resident_bytes
from agent.updates.child import limit
from agent.updates.vault import open_model
from agent.validate import Limits as ModelLimits
from agent.wire.limits import Limits

_FILE_BYTES = 16 << 20  # of a file that this may write: the tuner's answers are smaller
_SLACK_BYTES = 256 << 20  # beyond four budgets, while the tuner tries kernels: past that, allocation fails
_SLICES, _SLICE_S, _LATENCY_S = 12, 0.01, 2.0  # at least so many, each so long; in all, while over budget
Array = NDArray[np.generic]


class ModelFile(msgspec.Struct, frozen=True):
    """A file as it lies in the store, and how it is encrypted."""

    path: str
    release: Release


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """file: what is tested. model: how the service will load it; its ``path`` is not looked at. in_service: what
    answers now, to be timed beside it.

    key: the file of this device's age identities. tuner: its folder is named. latency_budget_ms,
    memory_budget_bytes: 0, no limit.
    """

    file: ModelFile
    model: ModelConfig
    in_service: ModelFile | None = None
    key: str | None = None
    limits: Limits = Limits()
    model_limits: ModelLimits = ModelLimits()
    tuner: Tuner = Tuner()
    spin_us: int = 50
    latency_budget_ms: float = 0.0
    memory_budget_bytes: int = 0


class Tested(msgspec.Struct, frozen=True):
    """median_us, reference_us: of a run, of this model and of the one in service, 0 where there is none or where it
    could not be timed. resident_bytes: what loading and running it added. golden: pairs that came out.
    """

    median_us: float
    reference_us: float
    resident_bytes: int
    golden: int
    backend: str
    isa: str


def perform(ask: Ask, progress: Progress) -> Tested:
    """Raises ``Refused``: ``no_key``, ``damaged``, ``not_a_model``, ``golden_differs``, ``latency_budget``,
    ``memory_budget``.
    """
    encrypted = [f.release.plaintext_bytes for f in (ask.file, ask.in_service) if f is not None]
    limit(resource.RLIMIT_FSIZE, max(_FILE_BYTES, *encrypted))  # plaintext in memory counts as a file
    try:
        return _perform(ask)
    except Refused:
        raise
    except Int8dError as e:
        raise Refused("memory_budget" if isinstance(e.__cause__, MemoryError) else "not_a_model", str(e)) from e
    except MemoryError as e:
        raise Refused("memory_budget", "there is not enough memory to load and run it") from e


def _perform(ask: Ask) -> Tested:
    tuner = ask.tuner
    importlib.import_module("agent.wire.images")  # the service has it already: it is not the model's to pay for
    give_back()
    before = resident_bytes()
    before_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if ask.memory_budget_bytes:
        limit(resource.RLIMIT_DATA, _data_bytes() + 4 * ask.memory_budget_bytes + _SLACK_BYTES)
    tuning = Tuning(tuner.folder, tuner.budget_s) if tuner.enabled else None
    golden, seats = _load(ask.file, ask.model, ask, tuning)
    for seat in seats:
        with pinned(seat.cores):
            _check_golden(golden, _batches(seat))
    give_back()
    added = max(0, resident_bytes() - before)
    if 0 < ask.memory_budget_bytes < added:
        raise Refused(
            "memory_budget",
            f"loading and running it adds {added:,} bytes; updates.memory_budget_bytes is {ask.memory_budget_bytes:,}",
        )
    resource.setrlimit(resource.RLIMIT_DATA, before_limit)
    median_us, reference_us = _time(ask, seats[0], golden[0])
    if 0 < ask.latency_budget_ms < median_us / 1000:
        beside = f"; the model in service takes {reference_us / 1000:.3f} ms" if reference_us else ""
        raise Refused(
            "latency_budget",
            f"a run takes {median_us / 1000:.3f} ms here, its budget is {ask.latency_budget_ms:g} ms{beside}",
        )
    engine = _batches(seats[0]).engine
    return Tested(median_us, reference_us, added, len(golden), engine.backend, engine.isa)


def _load(file: ModelFile, model: ModelConfig, ask: Ask, tuning: Tuning | None) -> tuple[list[Golden], list[Seat]]:
    """The golden pairs, copied out of the file, and the model as the service loads it."""
    config = Config(device="", limits=ask.limits, model_limits=ask.model_limits, spin_us=ask.spin_us)
    with open_model(file.path, file.release, ask.key) as path:
        contents = read(path, ask.model_limits)
    golden = [Golden(_copied(g.inputs), _copied(g.outputs)) for g in contents.golden]
    if not golden:
        raise Refused("not_a_model", "the release has no golden inputs to test it with: build it with int8d-make")
    return golden, load_replicas(model, contents, config, tuning)[1]


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays.items()}


def _batches(seat: Seat) -> Batches:
    batches: Batches = seat.predictor.batches  # type: ignore[attr-defined]  # of agent.predict.Predictor
    return batches


def _check_golden(golden: list[Golden], batches: Batches) -> None:
    """Each alone, in batches of every size that will run, and alone again."""
    engine = batches.engine
    members = [engine.check(pair.inputs) for pair in golden]
    for size in (1, *batches.sizes):
        for i in range(len(golden)):
            turn = [(i + k) % len(golden) for k in range(size)]
            for k, outputs in zip(turn, batches.run([members[k] for k in turn]), strict=True):
                _compare(k, golden[k], outputs, size)


def _compare(index: int, pair: Golden, outputs: Mapping[str, Array], size: int) -> None:
    for name, wanted in pair.outputs.items():
        got = outputs[name]
        if got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes():
            continue
        # By bytes: a NaN is not equal to itself.
        width = wanted.dtype.itemsize
        one, other = (np.frombuffer(a.tobytes(), np.uint8).reshape(-1, width) for a in (got, wanted))
        differ = int((one != other).any(1).sum()) if one.shape == other.shape else wanted.size
        together = f", {size} at once" if size > 1 else ""
        raise Refused(
            "golden_differs",
            f"golden input {index}{together}: {differ} of {wanted.size} values of output '{name}' are not the golden "
            "ones",
        )


def _time(ask: Ask, seat: Seat, golden: Golden) -> tuple[float, float]:
    """Microseconds of a run: of the model, and of the one in service, or 0."""
    contenders = [(_batches(seat).engine, golden)]
    if ask.in_service is not None:
        try:
            alike = msgspec.structs.replace(ask.model, replicas=1, cores=sorted(seat.cores or ()))
            remembered = Tuning(ask.tuner.folder) if ask.tuner.enabled else None
            pairs, seats = _load(ask.in_service, alike, ask, remembered)
            contenders.append((_batches(seats[0]).engine, pairs[0]))
        except (Int8dError, MemoryError):
            pass  # it is not what is tested
    with pinned(seat.cores):
        budget_us = ask.latency_budget_ms * 1000 or float("inf")
        best = _best_medians([(e, e.check(pair.inputs)) for e, pair in contenders], budget_us)
    return best[0], best[1] if len(best) > 1 else 0.0


def _best_medians(contenders: list[tuple[Engine, dict[str, Array]]], budget_us: float) -> list[float]:
    """Until the first is within its budget, or the time is up."""
    best = [float("inf")] * len(contenders)
    end, slices = time.perf_counter() + _LATENCY_S, 0
    while True:
        for i, (engine, inputs) in enumerate(contenders):
            best[i] = min(best[i], _slice(engine, inputs))
        slices += 1
        if time.perf_counter() > end or (slices >= _SLICES and best[0] <= budget_us):
            return best


def _slice(engine: Engine, inputs: dict[str, Array]) -> float:
    """The median of a few runs after a first, microseconds."""
    engine.run_checked(inputs)
    times: list[int] = []
    end = time.perf_counter_ns() + int(_SLICE_S * 1e9)
    while not times or time.perf_counter_ns() < end:
        begun = time.perf_counter_ns()
        engine.run_checked(inputs)
        times.append(time.perf_counter_ns() - begun)
    return statistics.median(times) / 1000


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA, and the stack."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
