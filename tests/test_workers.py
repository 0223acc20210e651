"""Workers: what runs together, what may not, order, replicas, and each member's own failure."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agent.config.tables import Config, ModelConfig
from agent.engine import Tuning, build_batches, load
from agent.errors import ConfigError, InputError
from agent.modelfile import read
from agent.predict import Predictor
from agent.replicas import load_replicas, pinned, seats_of, shares
from agent.serving.admission import Admission
from agent.serving.batcher import Batcher, Seat
from agent.serving.lane import Lane
from agent.serving.request import Ledger, Request
from agent.serving.strikes import Strikes
from agent.serving.worker import Workers
from agent.sweep import Measured, Setting, best, soonest
from tests.agent_process import DIGITS, picture

LANE = Lane("lane", max_queue=100_000)


class Played:
    """A model that answers with its request's id, and tells which ran together. seconds: what n together take."""

    def __init__(self, sizes: tuple[int, ...], seconds: Callable[[int], float] = lambda n: 0.0) -> None:
        self.sizes, self.seconds = sizes, seconds
        self.runs: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, payload: bytes, content_type: str | None, ledger: Ledger | None, request_id: str | None) -> bytes:
        self.gate.wait(10)
        self.runs.append([request_id or ""])
        if payload == b"bad":
            raise InputError("bad")
        return (request_id or "").encode()

    def predict_batch(self, requests: Sequence[Request]) -> list[bytes | Exception]:
        if any(r.payload == b"breaks a batch" for r in requests):
            raise MemoryError
        self.runs.append([r.id or "" for r in requests])
        return [InputError("bad") if r.payload == b"bad" else (r.id or "").encode() for r in requests]

    def expected_s(self, n: int) -> float:
        return self.seconds(n)


class World:
    """Requests in, answers out."""

    def __init__(self, *models: Played, strikes: Strikes | None = None, wait_s: float = 0.0) -> None:
        self.answers: dict[str, str] = {}
        self.order: list[str] = []
        self.strikes = strikes or Strikes(None)
        self.admission = Admission(self.refuse)
        seats = [{"m": Seat(model, wait_s=wait_s)} for model in models]
        self.workers = Workers(seats, self.admission, self.refuse, self.strikes)
        self.batcher = Batcher(self.admission, self.strikes, len(models))
        self.seat = seats[0]["m"]

    def refuse(self, request: Request, code: str, message: str) -> None:
        if request.settle():
            self.note(request, code)

    def note(self, request: Request, answer: str) -> None:
        self.order.append(request.id or "")
        self.answers[request.id or ""] = answer

    def request(self, name: str, payload: bytes = b"", deadline_s: float | None = None, model: str = "m") -> Request:
        deadline = None if deadline_s is None else time.monotonic_ns() + round(deadline_s * 1e9)
        return Request(payload, model, lambda p, c, r: self.note(r, p.decode()), id=name, deadline=deadline,
                       digest=name.encode().ljust(16))  # fmt: skip

    def put(self, *names: str, **kwargs: object) -> None:
        for name in names:
            self.admission.put(self.request(name, **kwargs), LANE)  # type: ignore[arg-type]

    def gather(self) -> list[str]:
        first = self.admission.take(0)
        assert first is not None
        return [r.id or "" for r in self.batcher.gather(first, self.seat)]

    def serve(self) -> None:
        self.workers.start()
        assert self.workers.stop(10)
        self.admission.close()


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*args: Played, **kwargs: object) -> World:
        made.append(World(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for w in made:
        w.admission.close()


def test_what_waits_runs_in_the_largest_sizes_that_it_fills(world: Callable[..., World]) -> None:
    model = Played((8, 4, 1))
    w = world(model)
    names = [f"{i:02}" for i in range(15)]
    w.put(*names)
    w.serve()
    assert [len(run) for run in model.runs] == [8, 4, 1, 1, 1]
    assert [name for run in model.runs for name in run] == w.order == names
    assert w.answers == {name: name for name in names}


def test_only_what_comes_next_for_the_same_model_runs_together(world: Callable[..., World]) -> None:
    w = world(Played((4, 2, 1)))
    w.put("a", "b", "c")
    w.put("other", model="n")
    w.put("d", "e")
    assert w.gather() == ["a", "b", "c"]
    assert w.gather() == ["other"]
    assert w.gather() == ["d", "e"]


def test_several_workers_take_equal_shares_of_what_waits(world: Callable[..., World]) -> None:
    w = world(Played((8, 4, 2, 1)), Played((8, 4, 2, 1)))
    w.put(*"abcdefgh")
    assert w.gather() == list("abcd")
    assert w.gather() == list("ef")  # two of the four that are left


def test_a_batch_is_shrunk_where_a_member_would_miss_its_deadline(world: Callable[..., World]) -> None:
    model = Played((4, 2, 1), seconds=lambda n: n * 1.0)
    w = world(model)
    w.put("a", "b")
    w.put("soon", deadline_s=2.5)
    w.put("c", "d")
    gathered = [w.admission.take(0)]
    gathered += [w.admission.take_same("m") for _ in range(4)]
    runs = []
    while run := w.batcher.next_run(gathered, w.seat):  # type: ignore[arg-type]
        runs.append([r.id for r in run])
    assert runs == [["a", "b"], ["soon", "c"], ["d"]]  # four take 4 s
    w.put("soon", deadline_s=3.5)
    w.put("a", "b", "c", "d")
    assert w.gather() == ["soon", "a", "b"]  # with a fourth it would be late
    w.put("late", deadline_s=0.5)  # it can't be helped, and holds up nobody
    w.put("a", "b", "c")
    first = [w.admission.take(0)] + [w.admission.take_same("m") for _ in range(3)]
    assert len(w.batcher.next_run(first, w.seat)) == 4  # type: ignore[arg-type]


def test_what_expired_meanwhile_is_left_out(world: Callable[..., World]) -> None:
    model = Played((2, 1))
    w = world(model)
    model.gate.clear()
    w.put("holds")
    w.workers.start()
    while len(w.admission):
        time.sleep(0.001)
    w.put("gone", deadline_s=0.02)
    w.put("stays")
    while "gone" not in w.answers:
        time.sleep(0.001)
    model.gate.set()
    assert w.workers.stop(10)
    assert w.answers == {"holds": "holds", "gone": "expired", "stays": "stays"}


def test_an_input_with_a_strike_runs_alone(world: Callable[..., World], tmp_path: Path) -> None:
    suspect = b"c".ljust(16)
    Strikes(tmp_path).begin(0, [suspect])  # and there the process died
    strikes = Strikes(tmp_path, release="")
    assert strikes.count(suspect) == 1
    model = Played((4, 2, 1))
    w = world(model, strikes=strikes)
    w.put(*"abcdefg")
    w.serve()
    assert model.runs == [["a", "b"], ["c"], ["d"], *([["e", "f"], ["g"]])]
    assert set(w.answers) == set("abcdefg")
    assert strikes.count(suspect) == 0
    strikes.close()


def test_one_bad_member_fails_alone(world: Callable[..., World]) -> None:
    model = Played((4, 1))
    w = world(model)
    w.put("a", "b")
    w.put("x", payload=b"bad")
    w.put("c")
    w.put("y", payload=b"breaks a batch")
    w.put("d", "e", "f")
    w.serve()
    assert w.answers == {n: n for n in "abcydef"} | {"x": "invalid_input"}
    assert [len(run) for run in model.runs] == [4, 1, 1, 1, 1]


def test_a_batch_waits_for_others_only_where_it_may(world: Callable[..., World]) -> None:
    w = world(Played((4, 1)), wait_s=5.0)
    w.put("a")
    threading.Timer(0.05, lambda: w.put("b", "c", "d")).start()
    assert w.gather() == list("abcd")
    w.put("a", deadline_s=0.1)  # never past a deadline
    begun = time.monotonic()
    assert w.gather() == ["a"]
    assert time.monotonic() - begun < 4
    w.put("a")
    threading.Timer(0.05, lambda: w.put("other", model="n")).start()
    assert w.gather() == ["a"]  # what came is for another model: it must not wait


def test_replicas_answer_everything(world: Callable[..., World]) -> None:
    models = [Played((4, 2, 1)) for _ in range(3)]
    w = world(*models)
    names = [str(i) for i in range(2000)]
    w.workers.start()
    for name in names:
        w.put(name)
    assert w.workers.stop(20)
    assert w.answers == {name: name for name in names}
    assert w.workers.idle
    assert w.workers.stuck_for() == 0


def test_one_that_hangs_is_seen_beside_others_that_serve(world: Callable[..., World]) -> None:
    hung = Played((1,))
    hung.gate.clear()
    w = world(Played((1,)), hung)
    w.workers.start()
    sent = 0
    while w.workers.stuck_for() < 0.1:
        if len(w.answers) >= sent - 1:  # all, but for the one that hangs perhaps
            w.put(str(sent))
            sent += 1
        time.sleep(0.001)
    assert not w.workers.idle
    hung.gate.set()
    assert w.workers.stop(10)
    assert len(w.answers) == sent


# A model is replaced between two requests


def test_a_worker_ends_what_it_began_and_then_serves_by_the_new_seat(world: Callable[..., World]) -> None:
    old, new = Played((1,)), Played((1,))
    w = world(old)
    old.gate.clear()
    w.put("a", "b", "c")
    w.workers.start()
    while len(w.admission) > 2:
        time.sleep(0.001)
    w.workers.replace("m", [Seat(new)])
    assert not w.workers.settled(0.05)
    old.gate.set()
    assert w.workers.settled(10)
    w.put("d")
    assert w.workers.stop(10)
    assert w.workers.settled(0)
    assert old.runs == [["a"]]
    assert new.runs == [["b"], ["c"], ["d"]]


def test_what_was_gathered_is_served_by_the_seat_that_gathered_it(world: Callable[..., World]) -> None:
    old, new = Played((4, 2, 1)), Played((4, 2, 1))
    w = world(old, wait_s=10.0)
    w.workers.start()
    w.put("a", "b")
    while len(w.admission):  # they are taken, and wait for two more
        time.sleep(0.001)
    w.workers.replace("m", [Seat(new)])
    w.put(*"cdef")
    assert w.workers.stop(20)
    assert old.runs == [list("abcd")]
    assert new.runs == [list("ef")]


def test_a_model_that_was_not_there_is_added(world: Callable[..., World]) -> None:
    w = world(Played((1,)), Played((1,)))
    w.workers.start()
    w.put("early", model="n")
    while not w.answers:
        time.sleep(0.001)
    w.workers.replace("n", [Seat(Played((1,)))])  # one for both workers
    names = [str(i) for i in range(50)]
    for name in names:
        w.put(name, model="n")
        w.put(f"m{name}")
    assert w.workers.stop(10)
    assert w.answers == {"early": "unknown_model"} | {n: n for n in names} | {f"m{n}": f"m{n}" for n in names}


def test_two_models_may_be_replaced_at_once(world: Callable[..., World]) -> None:
    class Slow(list[Seat]):
        def __len__(self) -> int:
            time.sleep(0.001)  # in the midst of it the other one's turn
            return super().__len__()

    w = world(Played((1,)), Played((1,)))
    lost: list[str] = []

    def replace(name: str) -> None:
        for _ in range(20):
            seat = Seat(Played((1,)))
            w.workers.replace(name, Slow([seat]))
            if any(worker.models.get(name) is not seat for worker in w.workers._workers):
                lost.append(name)

    threads = [threading.Thread(target=replace, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []


# With a real model


def test_members_of_a_batch_get_the_replies_of_single_requests() -> None:
    model = read(DIGITS)
    engine = load(model)
    predictor = Predictor(engine, batches=build_batches(engine, model, [4]))
    tensor = {"name": "x", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": list(range(64))}
    request = json.dumps({"id": "j", "inputs": [tensor]}).encode()
    payloads = [picture(0), bytes(range(64)), request, b"\x89PNG\r\n\x1a\n", picture(1), b"{"]
    requests = [Request(p, "digits", lambda *a: None, id=str(i)) for i, p in enumerate(payloads)]
    for request in requests:
        request.ledger.stamp("queue")
    results = predictor.predict_batch(requests)
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        if i in (3, 5):
            assert isinstance(result, InputError)
            continue
        assert isinstance(result, bytes)
        alone, reply = json.loads(predictor.predict(payloads[i], request_id=str(i))), json.loads(result)
        assert reply["parameters"].pop("batch_size") == 4
        assert alone["parameters"].pop("batch_size") == 1
        assert list(request.ledger.stages) == ["queue", "compute_input", "compute_infer", "compute_output"]
        del reply["parameters"], alone["parameters"]
        assert reply == alone


def test_replicas_share_out_the_cores_and_are_built_on_them(tmp_path: Path) -> None:
    assert shares([], 2) == [None, None]
    assert shares([0, 1, 2, 3, 4], 2) == [{0, 1}, {2, 3, 4}]
    assert shares([3], 2) == [{3}, {3}]
    here = sorted(os.sched_getaffinity(0))
    model = ModelConfig(name="digits", path=str(DIGITS), replicas=2, cores=here[:2])
    config = Config(device="d", model=[model])
    (first, _), seats = load_replicas(model, read(DIGITS), config, Tuning(tmp_path))
    assert [seat.cores for seat in seats] == shares(here[:2], 2)
    assert seats[0].predictor is first
    assert seats[1].predictor is not first
    assert os.sched_getaffinity(0) == set(here)
    by_worker = seats_of({"digits": seats, "other": seats[:1]})
    assert [models["digits"] for models in by_worker] == seats
    assert by_worker[1]["other"] is seats[0]
    with pytest.raises(ConfigError, match="may not run on 4000"), pinned(frozenset({4000})):
        pass


def test_a_worker_runs_where_its_model_shall(world: Callable[..., World]) -> None:
    seen: list[set[int]] = []

    class Looks(Played):
        def predict(self, *args: object) -> bytes:
            seen.append(os.sched_getaffinity(0))
            return b""

    here = sorted(os.sched_getaffinity(0))
    admission = Admission(lambda *a: None)
    seats = [{"pinned": Seat(Looks((1,)), frozenset(here[-1:])), "free": Seat(Looks((1,)))}]
    workers = Workers(seats, admission, lambda *a: None, Strikes(None))
    for model in ("free", "pinned", "free"):
        admission.put(Request(b"", model, lambda *a: None), LANE)
    workers.start()
    assert workers.stop(10)
    admission.close()
    assert seen == [set(here), {here[-1]}, set(here)]
    assert os.sched_getaffinity(0) == set(here)


def test_the_sweep_s_choice() -> None:
    found = [
        Measured(Setting(1, 1, 1), 100.0, 10.0, 12.0),
        Measured(Setting(1, 2, 1), 150.0, 6.0, 9.0),
        Measured(Setting(2, 1, 1, (0, 1)), 198.0, 10.0, 13.0),
        Measured(Setting(2, 1, 4), 200.0, 40.0, 43.0),
    ]
    assert best(found) is found[2]  # nearly as much, much sooner
    assert soonest(found) is found[1]
    assert found[2].setting.lines() == ["threads = 1", "replicas = 2", "max_batch = 1", "cores = [0, 1]"]
