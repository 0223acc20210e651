"""The shadow: what it makes of a candidate on live inputs, and that who is live never waits for it."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from agent import graph as g
from agent.config import Drift as DriftSettings
from agent.engine import build_batches, load
from agent.live.shadow import PLACES, Shadow
from agent.modelfile import FORMAT, Header, Model, read
from agent.predict import Predictor
from agent.serving.request import Request
from agent.telemetry.drift import Drift
from agent.updates.child import NICE
from tests.agent_process import DIGITS, picture
from tests.variants import shifted


def _serve(shadow: Shadow, predictor: Predictor, count: int, payload: Callable[[int], bytes] = picture) -> None:
    """``count`` live inferences, each one waited for until the candidate has had it."""
    for i in range(count):
        before = shadow.report()
        predictor.predict(payload(i % 40))
        _until(lambda before=before: shadow.report()["seen"] > before["seen"])


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


def _identity(name: str, dtype: str = "f32", scale: float = 0.0) -> Model:
    """A graph that hands its input on."""
    tensor = g.Tensor(name, (1, 4), dtype, *((scale, 0) if scale else ()))
    return Model(Header(FORMAT, "identity", "1", g.Graph((tensor,), (), (name,), (name,))), {})


@pytest.fixture
def live() -> Predictor:
    return Predictor(load(DIGITS), "digits")


def test_the_same_model_agrees_always(live: Predictor) -> None:
    shadow = Shadow(Predictor(load(DIGITS)), [live])
    _serve(shadow, live, 40)
    shadow.stop()
    report = shadow.report()
    assert (report["seen"], report["agreement"], report["errors"]) == (40, 1, 0)
    assert 0 < report["median_us"] <= report["p99_us"]
    assert shadow.verdict(1.0) is None
    assert live.observe is None
    live.predict(picture(0))
    assert shadow.report() == report


def test_a_model_that_answers_differently_disagrees(live: Predictor) -> None:
    shadow = Shadow(Predictor(load(shifted(read(DIGITS), 1))), [live])
    _serve(shadow, live, 20)
    shadow.stop()
    assert shadow.report()["agreement"] == 0
    refused = shadow.verdict(0.9)
    assert refused is not None
    assert refused.code == "shadow_disagrees"
    assert "0 of 20 live inputs (0.0%)" in str(refused)
    assert shadow.verdict(0.0) is None  # nobody asks for agreement


def test_answers_are_compared_by_label(live: Predictor) -> None:
    moved = shifted(read(DIGITS), 3)
    labels = tuple(np.roll(moved.header.labels, 3).tolist())
    shadow = Shadow(
        Predictor(load(replace(moved, header=msgspec.structs.replace(moved.header, labels=labels)))), [live]
    )
    _serve(shadow, live, 20)
    shadow.stop()
    assert shadow.report()["agreement"] == 1


def test_without_traffic_nothing_speaks_against_it(live: Predictor) -> None:
    shadow = Shadow(Predictor(load(shifted(read(DIGITS), 1))), [live])
    shadow.stop()
    assert shadow.report() == {"seen": 0, "dropped": 0, "errors": 0}
    assert shadow.verdict(1.0) is None


def test_a_candidate_that_takes_other_inputs_fails() -> None:
    live = Predictor(load(_identity("x")))
    shadow = Shadow(Predictor(load(_identity("other"))), [live])
    _serve(shadow, live, 3, lambda i: np.full(4, i, "<f4").tobytes())
    shadow.stop()
    refused = shadow.verdict(0.0)
    assert refused is not None
    assert refused.code == "shadow_errors"
    assert "it failed on 3 of 3 live inputs; the first: InputError: there is no input 'x'" in str(refused)


class Answers:
    """An engine that answers an identity's input with something else."""

    def __init__(self, answer: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> None:
        real = load(_identity("x"))
        self.header, self.inputs, self.outputs = real.header, real.inputs, real.outputs
        self._answer = answer

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return self._answer(inputs["x"].reshape(1, 4))


def _outcome(answer: Callable[[np.ndarray], Mapping[str, np.ndarray]], payload: bytes) -> dict[str, float]:
    live = Predictor(load(_identity("x")))
    candidate = Predictor(load(_identity("x")))
    candidate.engine = Answers(answer)  # type: ignore[assignment]
    shadow = Shadow(candidate, [live])
    _serve(shadow, live, 1, lambda i: payload)
    shadow.stop()
    return shadow.report()


def test_one_disagreement_of_a_few_proves_nothing() -> None:
    live, candidate = (Predictor(load(_identity("x"))) for _ in range(2))
    candidate.engine = Answers(lambda x: {"x": x + (x == 3)})  # type: ignore[assignment]
    shadow = Shadow(candidate, [live])
    _serve(shadow, live, 10, lambda i: np.full(4, i, "<f4").tobytes())
    shadow.stop()
    assert shadow.report()["agreement"] == 0.9
    assert shadow.verdict(0.95) is None
    refused = shadow.verdict(1.0)  # by what is asked, it can't be chance
    assert refused is not None
    assert refused.code == "shadow_disagrees"


def test_what_is_no_number_where_there_was_one_is_an_error() -> None:
    fine, infinite = (np.array([1, 2, 3, last], "<f4").tobytes() for last in (4, np.inf))
    for bad in (np.nan, np.inf):
        report = _outcome(lambda x, bad=bad: {"x": np.where(x == 4, np.float32(bad), x)}, fine)
        assert (report["errors"], report["seen"]) == (1, 1)
    report = _outcome(lambda x: {"x": x.copy()}, infinite)
    assert (report["errors"], report["agreement"]) == (0, 1)


@pytest.mark.parametrize(("answer", "agrees"), [
    (lambda x: {"x": x + np.float32(0.03)}, True),  # less than 1% of the largest element, which is 4
    (lambda x: {"x": x + np.float32(0.05)}, False),
    (lambda x: {"x": x.copy(), "more": x}, True),
    (lambda x: {"y": x.copy()}, False),
    (lambda x: {"x": x[:, :3]}, False),
])  # fmt: skip
def test_without_classes_the_outputs_are_compared(
    answer: Callable[[np.ndarray], Mapping[str, np.ndarray]], agrees: bool
) -> None:
    report = _outcome(answer, np.array([1, 2, 3, 4], "<f4").tobytes())
    assert (report["agreement"], report["errors"]) == (agrees, 0)


def test_quantized_outputs_are_compared_as_real_values() -> None:
    live = Predictor(load(_identity("x", "u8", 0.5)))
    for scale, agrees in ((0.5, 1), (0.505, 1), (1.0, 0)):
        shadow = Shadow(Predictor(load(_identity("x", "u8", scale))), [live])
        _serve(shadow, live, 1, lambda i: bytes([10, 20, 30, 200]))
        shadow.stop()
        assert shadow.report()["agreement"] == agrees


def test_all_replicas_and_all_members_of_a_batch_are_seen() -> None:
    model = read(DIGITS)
    engine = load(model)
    replicas = [Predictor(engine, batches=build_batches(engine, model, [2])) for _ in range(2)]
    shadow = Shadow(Predictor(load(DIGITS)), replicas)
    for predictor in replicas:
        requests = [Request(picture(i), "digits", lambda *a: None) for i in range(2)]
        seen = shadow.report()["seen"]
        predictor.predict_batch(requests)
        _until(lambda seen=seen: shadow.report()["seen"] == seen + 2)
    shadow.stop()
    assert shadow.report()["agreement"] == 1


def test_who_looked_on_before_still_does(live: Predictor) -> None:
    drift = Drift(DriftSettings(every=1))
    watching = drift.watch("digits", read(DIGITS))
    live.observe = watching
    first = Shadow(Predictor(load(DIGITS)), [live])
    second = Shadow(Predictor(load(shifted(read(DIGITS), 1))), [live])
    _serve(second, live, 3)
    first.stop()  # in the order in which they came
    _serve(second, live, 3)
    second.stop()
    assert live.observe == watching
    live.predict(picture(0))
    assert drift.snapshot()["digits"]["n"] == 7


def test_the_one_in_service_never_waits_for_a_candidate_that_hangs(live: Predictor) -> None:
    candidate = Predictor(load(DIGITS))
    gate = threading.Event()
    real = candidate.engine

    class Hangs:
        header, inputs, outputs = real.header, real.inputs, real.outputs

        def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            gate.wait(30)
            return real.run(inputs)

    candidate.engine = Hangs()  # type: ignore[assignment]
    shadow = Shadow(candidate, [live])
    replies = [json.loads(live.predict(picture(i % 40)))["classes"][0]["label"] for i in range(200)]
    assert replies[:40] == replies[40:80]
    assert shadow.report()["dropped"] >= 200 - PLACES - 1
    shadow.stop(0.05)
    refused = shadow.verdict(0.0)
    gate.set()
    assert refused is not None
    assert refused.code == "shadow_errors"
    assert "has not ended within 0.05 s" in str(refused)


def test_it_runs_at_low_priority(live: Predictor) -> None:
    shadow = Shadow(Predictor(load(DIGITS)), [live])
    _serve(shadow, live, 1)
    native, ours = shadow._thread.native_id, os.getpriority(os.PRIO_PROCESS, 0)
    assert native is not None
    assert os.getpriority(os.PRIO_PROCESS, native) == max(ours, NICE)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours
    shadow.stop()


def test_once_stopped_it_keeps_no_engine_in_service() -> None:
    live = Predictor(load(DIGITS))
    shadow = Shadow(Predictor(load(shifted(read(DIGITS), 1))), [live])
    _serve(shadow, live, 3)
    shadow.stop()
    engine = weakref.ref(live.engine)
    gc.disable()  # it must not need that
    try:
        del live
        assert engine() is None
    finally:
        gc.enable()
    assert shadow.report()["seen"] == 3
