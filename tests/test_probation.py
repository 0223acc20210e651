"""Probation: what ends it, what does not, and the counts that it is judged by."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from math import comb

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import graph as g
from agent.config.tables import Updates
from agent.engine import load
from agent.live.chance import tail
from agent.live.probation import Probation, Watch
from agent.modelfile import FORMAT, Header, Model
from agent.predict import Predictor
from agent.serving.request import Ledger
from agent.telemetry import metrics
from agent.telemetry.histogram import Histogram, upper
from agent.telemetry.stats import Snapshot, Stats

MS = 1_000_000


class Traffic:
    """Counts of a model as the daemon makes them, at a clock that is set by hand."""

    def __init__(self, seed: int = 0) -> None:
        self.stats = Stats({"models": {"m": {}, "other": {}}})
        self.now = 100.0
        self._draw = random.Random(seed)

    def answer(self, count: int, ms: float, batch: int = 1, model: str = "m") -> None:
        """``count`` answers whose runs take ``ms``, a fifth more or less."""
        for _ in range(count):
            ledger = Ledger()
            ledger.stages = {"compute_infer": round(ms * MS * self._draw.uniform(0.8, 1.2))}
            ledger.batch_size = batch
            self.stats.answered(model, ledger)

    def refuse(self, count: int, code: str = "internal", model: str = "m") -> None:
        for _ in range(count):
            self.stats.refused(code, model)

    def snapshot(self) -> Snapshot:
        return self.stats.snapshot()

    def probation(self, settings: Updates = Updates(), **kwargs: object) -> Probation:
        return Probation(settings, "m", self.snapshot(), clock=lambda: self.now, **kwargs)  # type: ignore[arg-type]

    def seconds(self, probation: Probation, count: int, each: Callable[[], None]) -> list[str]:
        """A second of traffic, then a judgement, so many times; the codes until there is one."""
        for _ in range(count):
            each()
            self.now += 1
            refused = probation.judge(self.snapshot())
            if refused is not None:
                return [refused.code, str(refused)]
        return []


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


def test_the_tail_is_that_of_the_sum_of_all_terms() -> None:
    for n, p in ((1, 0.5), (7, 0.01), (30, 0.3), (200, 0.02)):
        for k in range(n + 1):
            expected = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)) if k > n * p else 1.0
            assert tail(k, n, p) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert tail(1, 10, 0.0) == 0
    assert tail(0, 10, 0.0) == 1
    assert tail(10, 10, 1.0) == 1
    assert tail(2000, 100_000, 0.01) < 1e-100


def test_what_serves_as_before_passes(traffic: Traffic) -> None:
    traffic.answer(1000, 5)
    traffic.refuse(10)
    probation = traffic.probation()

    def second() -> None:
        traffic.answer(100, 5)
        traffic.refuse(1)
        traffic.refuse(30, model="other")  # none of its business
        traffic.refuse(30, code="invalid_input")  # nor its fault

    for left in range(59, -1, -1):
        assert not probation.done()
        assert traffic.seconds(probation, 1, second) == []
        assert probation.report()["left_s"] == left
    assert probation.done()
    report = probation.report()
    assert (report["requests"], report["failures"]) == (60 * 101, 60)
    assert report["p99_us"] == pytest.approx(5950, rel=0.07)
    assert report["p99_before_us"] == pytest.approx(5950, rel=0.07)


def test_without_traffic_it_passes(traffic: Traffic) -> None:
    probation = traffic.probation()
    assert traffic.seconds(probation, 60, lambda: None) == []
    assert probation.done()
    assert set(probation.report()) == {"requests", "failures", "late", "nans", "left_s"}


@pytest.mark.parametrize(("failed", "of", "ends"), [
    (1, 1, False), (2, 2, False), (3, 3, True), (3, 20, False), (4, 20, True), (12, 1000, False), (30, 1000, True),
])  # fmt: skip
def test_failures_end_it_where_chance_does_not_explain_them(traffic: Traffic, failed: int, of: int, ends: bool) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()
    traffic.refuse(failed)
    traffic.answer(of - failed, 5)
    refused = probation.judge(traffic.snapshot())
    assert (refused is not None) == ends
    if refused is not None:
        assert refused.code == "errors"
        assert f"{failed} of {of} requests failed" in str(refused)


def test_what_failed_before_may_fail_on(traffic: Traffic) -> None:
    traffic.answer(900, 5)
    traffic.refuse(100)
    probation = traffic.probation()
    traffic.answer(900, 5)
    traffic.refuse(110)
    assert probation.judge(traffic.snapshot()) is None
    traffic.refuse(60)
    assert "before it was 10.0%" in str(probation.judge(traffic.snapshot()))


def test_only_the_time_of_the_one_before_is_the_base(traffic: Traffic) -> None:
    traffic.answer(500, 50)  # an older release's
    traffic.refuse(500)
    began = traffic.snapshot()
    traffic.answer(500, 5)
    probation = traffic.probation(since=began)
    assert probation.report()["p99_before_us"] == pytest.approx(5950, rel=0.07)
    traffic.answer(90, 5)
    traffic.refuse(10)
    refused = probation.judge(traffic.snapshot())
    assert refused is not None
    assert refused.code == "errors"


@pytest.mark.parametrize("rate", [2, 100])
def test_a_slower_release_ends_it(rate: int) -> None:
    traffic = Traffic()
    traffic.answer(500, 5)
    probation = traffic.probation()
    code, why = traffic.seconds(probation, 60, lambda: traffic.answer(rate, 20))
    assert code == "latency"
    assert "before it was 6.0" in why
    assert traffic.now < 160 or rate == 2


def test_a_slower_release_ends_even_a_short_probation(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation(Updates(probation_s=1.0))
    assert traffic.seconds(probation, 1, lambda: traffic.answer(8, 20))[0] == "latency"


@pytest.mark.parametrize(("before", "after"), [(5, 8), (0.1, 0.6)])  # less than twice; less than a millisecond more
def test_a_little_slower_is_let_be(before: float, after: float) -> None:
    traffic = Traffic()
    traffic.answer(500, before)
    probation = traffic.probation()
    assert traffic.seconds(probation, 60, lambda: traffic.answer(100, after)) == []


def test_a_burst_of_other_work_on_the_box_is_let_be(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()
    begun = traffic.now
    slow = {10, 11, 12, 13, 31, 45}  # 10% of all runs
    assert traffic.seconds(probation, 60, lambda: traffic.answer(100, 40 if traffic.now - begun in slow else 5)) == []


def test_more_requests_together_may_take_longer(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()
    assert traffic.seconds(probation, 60, lambda: traffic.answer(100, 35, batch=8)) == []
    alone = traffic.probation()
    assert traffic.seconds(alone, 60, lambda: traffic.answer(100, 35, batch=8)) == []


@pytest.mark.parametrize("base", [0, 500])
def test_a_release_over_its_budget_ends_it(base: int) -> None:
    traffic = Traffic()
    traffic.answer(base, 9)
    probation = traffic.probation(budget_s=0.01)
    code, why = traffic.seconds(probation, 60, lambda: traffic.answer(50, 15))
    assert code == "latency"
    assert "budget of 10 ms" in why
    within = traffic.probation(budget_s=0.02)
    assert traffic.seconds(within, 60, lambda: traffic.answer(50, 15)) == []


def test_deadlines_missed_by_a_slower_release_end_it(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()

    def second() -> None:
        traffic.answer(50, 8)
        traffic.refuse(50, code="expired")

    code, why = traffic.seconds(probation, 60, second)
    assert code == "latency"
    assert "missed their deadline" in why


def test_deadlines_that_all_are_missed_end_it(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()
    assert traffic.seconds(probation, 60, lambda: traffic.refuse(5, code="expired"))[0] == "latency"
    without_base = Traffic()
    probation = without_base.probation(budget_s=0.01)
    assert without_base.seconds(probation, 60, lambda: without_base.refuse(5, code="expired"))[0] == "latency"


def test_deadlines_missed_because_more_came_are_let_be(traffic: Traffic) -> None:
    traffic.answer(500, 5)
    probation = traffic.probation()

    def second() -> None:
        traffic.answer(200, 5)
        traffic.refuse(50, code="expired")

    assert traffic.seconds(probation, 60, second) == []
    assert probation.report()["late"] == 3000


def _identity() -> Predictor:
    """A model that hands its input on."""
    graph = g.Graph((g.Tensor("x", (1, 4), "f32"),), (), ("x",), ("x",))
    return Predictor(load(Model(Header(FORMAT, "m", "1", graph), {})))


def test_answers_with_a_nan_are_failures(traffic: Traffic) -> None:
    predictor = _identity()
    watch = Watch([predictor])
    probation = traffic.probation(watch=watch)
    good = np.array([1, -1, 3e38, 3e38], "<f4").tobytes()
    infinite = np.array([1, np.inf, -np.inf, 0], "<f4").tobytes()
    broken = np.array([1, np.nan, 2, 3], "<f4").tobytes()
    for payload in [good, infinite] * 10:
        predictor.predict(payload)
    assert watch.nans == 0
    for payload in [broken] * 4:
        predictor.predict(payload)
    traffic.answer(24, 5)
    refused = probation.judge(traffic.snapshot())
    assert refused is not None
    assert refused.code == "errors"
    assert "4 of 24 requests failed (16.7%), 4 of them answered with a NaN" in str(refused)
    watch.stop()
    assert predictor.observe is None


# What it is judged by


def test_failures_are_told_by_model(traffic: Traffic) -> None:
    traffic.refuse(3)
    traffic.refuse(2, code="expired", model="other")
    traffic.refuse(4, code="invalid_input")
    traffic.refuse(5, model="a model of a stranger's topic")
    assert traffic.snapshot().failures == {"m": {"internal": 3}, "other": {"expired": 2}}
    assert json.loads(traffic.stats.document())["failures"] == {"m": {"internal": 3}, "other": {"expired": 2}}
    page = metrics.page(traffic.stats, 0, True).decode()
    found = {f.name: f for f in text_string_to_metric_families(page)}["int8d_model_failure"]
    assert [(s.labels["model"], s.labels["reason"], s.value) for s in found.samples] == [
        ("m", "internal", 3), ("other", "expired", 2)
    ]  # fmt: skip


def test_the_difference_of_two_histograms_is_that_of_what_came_between() -> None:
    draw = random.Random(4)
    early, late = ([int(draw.lognormvariate(12, 1.5)) for _ in range(1000)] for _ in range(2))
    histogram, alone = Histogram(), Histogram()
    for value in [*early, 1 << 40]:
        histogram.add(value)
    before = histogram.copy()
    for value in late:
        histogram.add(value)
        alone.add(value)
    found = histogram.since(before)
    assert (found.counts, found.sum) == (alone.counts, alone.sum)
    assert alone.max <= found.max <= alone.max * 17 / 16
    assert found.percentiles(50, 99) == alone.percentiles(50, 99)
    assert histogram.since(histogram).max == 0
    limit = upper(300)
    assert found.above(limit) == sum(value > limit for value in late)
