"""A model is replaced between two requests, under load: none is lost, the order holds, the old engines are freed."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref

from agent.engine import Engine, build_batches, load
from agent.modelfile import Model, read
from agent.predict import Predictor
from agent.replicas import seats_of
from agent.serving.admission import Admission
from agent.serving.batcher import Seat
from agent.serving.lane import Lane
from agent.serving.request import Request
from agent.serving.strikes import Strikes
from agent.serving.worker import Workers
from tests.agent_process import DIGITS, picture
from tests.variants import shifted

SWAPS, SENDERS, REPLICAS = 6, 3, 2
PICTURES = [picture(i) for i in range(40)]


class Served:
    """Workers, and what they answer: each answer tells by its class which model ran."""

    def __init__(self, seats: list[Seat]) -> None:
        alone = Predictor(load(DIGITS))
        self._expected = [_class(alone.predict(p)) for p in PICTURES]
        self.refusals: list[str] = []
        self.answered: list[int] = []
        self.shifts: dict[str, list[int]] = {}  # by worker
        self.admission = Admission(self._refuse)
        self.workers = Workers(seats_of({"digits": seats}), self.admission, self._refuse, Strikes(None))
        self.sent = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._senders = [threading.Thread(target=self._send) for _ in range(SENDERS)]

    def start(self) -> None:
        self.workers.start()
        for sender in self._senders:
            sender.start()

    def stop(self) -> None:
        self._ended.set()
        for sender in self._senders:
            sender.join()
        assert self.workers.stop(20)
        self.admission.close()

    def wait_for(self, more: int) -> None:
        until = len(self.answered) + more
        while len(self.answered) < until and not self.refusals:
            time.sleep(0.001)

    def _send(self) -> None:
        lane = Lane("lane", max_queue=1000)
        while not self._ended.is_set():
            with self._lock:  # in the order of their numbers
                request = Request(PICTURES[self.sent % 40], "digits", self._answer, id=str(self.sent))
                self.sent += 1
                self.admission.put(request, lane)
            while len(self.admission) > 20:
                time.sleep(0.0005)

    def _answer(self, reply: bytes, content_type: str, request: Request) -> None:
        number = int(request.id or "")
        self.answered.append(number)
        shift = (_class(reply) - self._expected[number % 40]) % 10
        self.shifts.setdefault(threading.current_thread().name, []).append(shift)

    def _refuse(self, request: Request, code: str, message: str) -> None:
        self.refusals.append(f"{code}: {message}")


def _class(reply: bytes) -> int:
    found: int = json.loads(reply)["classes"][0]["index"]
    return found


def _load(model: Model) -> list[Predictor]:
    engine = load(model)
    assert engine.like is not None
    engines = [engine] + [engine.like(model) for _ in range(REPLICAS - 1)]
    return [Predictor(e, batches=build_batches(e, model, [4])) for e in engines]


def test_under_load_each_answer_is_the_old_ones_or_the_new_ones_and_old_engines_are_freed() -> None:
    predictors = _load(shifted(read(DIGITS), 0))
    served = Served([Seat(p) for p in predictors])
    served.start()
    gc.disable()  # an engine must be freed without it
    try:
        for swap in range(1, SWAPS + 1):
            served.wait_for(100)
            old: list[weakref.ref[Engine]] = [weakref.ref(p.engine) for p in predictors]
            predictors = _load(shifted(read(DIGITS), swap))
            served.workers.replace("digits", [Seat(p) for p in predictors])
            assert served.workers.settled(10)
            assert [engine() for engine in old] == [None] * REPLICAS
    finally:
        gc.enable()
        served.stop()
    assert served.refusals == []
    assert sorted(served.answered) == list(range(served.sent))
    assert len(served.shifts) == REPLICAS
    for shifts in served.shifts.values():
        assert shifts == sorted(shifts)  # never an older one again
    assert {shift for shifts in served.shifts.values() for shift in shifts} >= set(range(SWAPS))
