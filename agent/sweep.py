"""How many replicas, threads and inputs at once are best for a model on this box: tried, not guessed.

Each combination is served by the daemon's own queue and workers, without a broker: as many requests are kept under way
as its runs can hold, for a second or so. Latency is from the queue to the reply, under that load.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.engine import Batches, Engine, Tuning, build_batches, load, noise
from agent.engine.batch_times import sizes_up_to
from agent.modelfile import Model, read
from agent.predict import Predictor
from agent.replicas import pinned, shares
from agent.serving.admission import Admission
from agent.serving.batcher import Seat
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.serving.strikes import Strikes
from agent.serving.worker import Workers
from agent.wire import oip

_WARM_S = 0.2
CLOSE = 0.97  # of the best throughput: as good, so that latency decides


class Setting(msgspec.Struct, frozen=True):
    """One combination. cores: where it was pinned to, or empty."""

    replicas: int
    threads: int
    batch: int
    cores: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """As int8d.toml has it, below ``[[model]]``."""
        lines = [f"threads = {self.threads}", f"replicas = {self.replicas}", f"max_batch = {self.batch}"]
        return [*lines, f"cores = {list(self.cores)}"] if self.cores else lines


class Measured(msgspec.Struct, frozen=True):
    """What a setting reached."""

    setting: Setting
    per_second: float
    p50_ms: float
    p99_ms: float


def sweep(path: str | Path, seconds: float, most: int, backend: str, tuning: Tuning) -> Iterator[Measured]:
    """Every combination that this box has cores for, batches up to ``most`` and only where the model can have them."""
    model = read(path)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    counts = sorted({1, *sizes_up_to(len(cores)), len(cores)})
    for replicas, threads in itertools.product(counts, counts):
        if replicas * threads > len(cores):
            continue
        for pins in [(), cores] if replicas > 1 else [()]:
            engines = [_pinned_load(model, threads, backend, tuning, share) for share in shares(pins, replicas)]
            for batch in [1, *sizes_up_to(most)]:
                several = [build_batches(engine, model, [batch]) for engine in engines]
                if several[0].most < batch:
                    break
                yield measure(several, Setting(replicas, threads, batch, pins), seconds)


def best(found: Sequence[Measured]) -> Measured:
    """The most a second; among what comes close, the soonest."""
    top = max(m.per_second for m in found)
    return min((m for m in found if m.per_second >= CLOSE * top), key=lambda m: m.p50_ms)


def soonest(found: Sequence[Measured]) -> Measured:
    """Of one replica without batches, the number of threads that answers a lone request soonest."""
    return min((m for m in found if m.setting.replicas == m.setting.batch == 1), key=lambda m: m.p50_ms)


def measure(several: Sequence[Batches], setting: Setting, seconds: float) -> Measured:
    """Serves as fast as it can be served, with ``replicas * batch`` requests under way."""
    places = shares(setting.cores, setting.replicas)
    seats = [{"": Seat(Predictor(b.engine, batches=b), place)} for b, place in zip(several, places, strict=True)]
    failures: list[str] = []
    admission = Admission(lambda request, code, message: failures.append(message))
    workers = Workers(seats, admission, lambda request, code, message: failures.append(message), Strikes(None))
    lane, payload = Lane("sweep", max_queue=10_000), _payload(several[0].engine)
    latencies: list[tuple[int, int]] = []  # when it was answered, and after how long
    running = threading.Event()
    running.set()

    def send() -> None:
        admission.put(Request(payload, "", answer, digest=b"-"), lane)

    def answer(reply: bytes, content_type: str, request: Request) -> None:
        now = time.monotonic_ns()
        latencies.append((now, now - request.ledger.received))
        if running.is_set():
            send()

    workers.start()
    for _ in range(setting.replicas * setting.batch):
        send()
    time.sleep(_WARM_S)
    begun = time.monotonic_ns()
    time.sleep(seconds)
    ended = time.monotonic_ns()
    running.clear()
    admission.close()
    workers.stop(60)
    assert not failures, failures[0]
    counted = sorted(taken for at, taken in latencies if begun < at <= ended) or [latencies[-1][1]]
    p50, p99 = (counted[min(len(counted) - 1, len(counted) * p // 100)] / 1e6 for p in (50, 99))
    return Measured(setting, len(counted) / ((ended - begun) / 1e9), p50, p99)


def _pinned_load(model: Model, threads: int, backend: str, tuning: Tuning, cores: frozenset[int] | None) -> Engine:
    with pinned(cores):
        return load(model, threads, backend, tuning=tuning)  # type: ignore[arg-type]


def _payload(engine: Engine) -> bytes:
    """One request: raw bytes, or where there are several inputs, the protocol's binary tensors."""
    arrays = noise(engine)
    if len(arrays) == 1:
        (array,) = arrays.values()
        return bytes(array)
    return oip.encode_request(arrays)
