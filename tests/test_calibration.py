"""Calibration: histograms are exact where they say so, a rule gives the range it stands for, and the report is true."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agent.errors import ModelError
from models.cli import main
from models.compress import ranges, report
from models.compress.quantize import quantize
from models.compress.ranges import Histogram, affine, choose, cost
from models.intake.torch_export import to_graph

RULES = (*ranges.RULES, "percentile:99")


def seen(*arrays: np.ndarray) -> Histogram:
    h = Histogram()
    for array in arrays:
        h.add(array.astype(np.float32))
    return h


def quantized(x: np.ndarray, low: float, high: float) -> np.ndarray:
    scale, zero_point = affine(low, high)
    return (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * float(scale)


def sqnr(x: np.ndarray, low: float, high: float) -> float:
    return 10 * math.log10((x @ x) / np.square(x - quantized(x, low, high)).sum())


def tailed(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, 100_000)


def test_the_order_and_the_batches_do_not_change_the_histogram() -> None:
    x = tailed() * np.repeat([1e-3, 1.0, 300.0, 0.1], 25_000)
    x[::7] = 0
    one, parts, turned = seen(x), seen(*np.split(x, 10)), seen(*np.split(x, 10)[::-1])
    for h in (parts, turned):
        assert all(np.array_equal(a, b) for a, b in zip(h.bins(), one.bins(), strict=True))
        assert (h.least, h.greatest, h.zeros, h.total) == (one.least, one.greatest, one.zeros, one.total)
    x = x.astype(np.float32)
    assert (one.least, one.greatest, one.zeros, one.total) == (x.min(), x.max(), (x == 0).sum(), x.size)


def test_infinities_and_nan_are_passed_over() -> None:
    h = seen(np.array([np.inf, 1.0, np.nan, -2.0, -np.inf]))
    assert (h.least, h.greatest, h.total) == (-2.0, 1.0, 2)


@pytest.mark.parametrize("rule", RULES)
def test_zero_is_always_one_of_the_values(rule: str) -> None:
    rng = np.random.default_rng(1)
    for made in (rng.uniform(3, 5, 9000), rng.uniform(-5, -3, 9000), rng.normal(1, 2, 9000), np.zeros(5), np.ones(1)):
        x = made.astype(np.float32)
        low, high = choose(seen(x), rule)
        assert min(x.min(), 0) <= low <= 0 <= high <= max(x.max(), 0)
        scale, zero_point = affine(low, high)
        assert scale > 0
        assert 0 <= zero_point <= 255
        assert quantized(np.zeros(1), low, high)[0] == 0
    assert choose(Histogram(), rule) == (0, 0)


def test_minmax_clips_nothing_and_percentile_what_it_says() -> None:
    x = tailed()
    h = seen(x)
    assert choose(h, "minmax") == (np.float32(x.min()), np.float32(x.max()))
    assert cost(h, *choose(h, "minmax")).clipped == 0
    for rule, share in (("percentile", 1e-4), ("percentile:99", 1e-2), ("percentile:99.9", 1e-3)):
        low, high = choose(h, rule)
        expected = np.quantile(x, [share / 2, 1 - share / 2])
        assert np.allclose([low, high], expected, atol=2 * h.width + 0.02 * np.abs(expected))
    assert choose(seen(np.maximum(x, 0)), "percentile")[0] == 0


def test_mse_is_the_best_range_of_all() -> None:
    for seed in range(3):
        x = tailed(seed)[:10_000]
        h = seen(x)
        parts = np.linspace(0.05, 1, 39)
        best = max(sqnr(x, a * h.least, b * h.greatest) for a in parts for b in parts)
        assert sqnr(x, *choose(h, "mse")) > best - 0.05
        for rule in RULES:
            assert sqnr(x, *choose(h, rule)) <= sqnr(x, *choose(h, "mse")) + 0.05


def test_entropy_keeps_the_shape_of_the_bulk_and_gives_up_outliers() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(0, 1, 100_000), [80.0]])
    low, high = choose(seen(x), "entropy")
    assert -6 < low < -3
    assert 3 < high < 8
    even = np.random.default_rng(0).uniform(-1, 3, 100_000)
    assert np.allclose(choose(seen(even), "entropy"), (-1, 3), atol=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_few_values_are_not_clipped_away(rule: str) -> None:
    gates = 1 / (1 + np.exp(-np.random.default_rng(3).normal(size=500)))
    h = seen(gates)
    assert cost(h, *choose(h, rule)).sqnr_db > 20


def test_costs_are_those_of_quantizing() -> None:
    x = tailed()
    h = seen(x)
    for rule in RULES:
        low, high = choose(h, rule)
        c = cost(h, low, high)
        error = np.square(x - quantized(x, low, high))
        scale, zero_point = affine(low, high)
        beyond = np.abs(np.rint(x / scale) + zero_point - 127.5) > 128
        assert c.sqnr_db == pytest.approx(sqnr(x, low, high), abs=0.2)
        assert c.clipped == pytest.approx(beyond.mean(), rel=0.1, abs=2e-5)
        assert c.rounding_db == pytest.approx(10 * math.log10((x @ x) / error[~beyond].sum()), abs=0.2)
        if c.clipping_db < c.rounding_db + 3:  # of a few values just beyond the range, bins know little
            assert c.clipping_db == pytest.approx(10 * math.log10((x @ x) / error[beyond].sum()), abs=0.2)


@pytest.mark.parametrize("rule", ["max", "percentile:", "percentile:101", "percentile:50", "mse:3", ""])
def test_a_rule_that_there_is_not_is_refused_with_those_that_there_are(rule: str) -> None:
    with pytest.raises(ModelError, match="minmax, percentile"):
        quantize(nn.Identity(), [], rule)


def test_quantize_goes_by_the_rule_and_reports_each_activation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(4, 3, 8, 8)
    x[0, 0, 0, 0] = 50.0
    scales = {}
    for rule in ("minmax", "percentile:99"):
        converted = quantize(net, [x], rule)
        graph, _ = to_graph(converted)
        observed = converted.meta["calibration"]
        quantization = {t.name: (t.scale, t.zero_point) for t in graph.tensors if t.dtype == "u8"}
        assert {(o.scale, o.zero_point) for o in observed} == set(quantization.values())
        assert [o.tensor for o in observed] == ["input_1", "relu", "conv2d_1"]  # as torch.export names them
        scales[rule] = quantization[graph.inputs[0]][0]
        assert all(o.rule == rule and o.values > 0 for o in observed)
    first = observed[0]
    assert (first.least, first.greatest) == (x.min().item(), 50.0)
    assert first.high < 10
    assert first.clipped == pytest.approx(0.01, abs=0.005)
    assert scales["minmax"] > 5 * scales["percentile:99"]
    report.write(tmp_path / "r.json", observed)
    assert json.loads((tmp_path / "r.json").read_text())[0]["greatest"] == 50.0
    report.write(tmp_path / "r.txt", observed)
    lines = (tmp_path / "r.txt").read_text().splitlines()
    assert lines[0] == "rule: percentile:99"
    assert [line.split()[0] for line in lines[2:]] == [o.tensor for o in observed]


def test_build_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "report.json"
    assert main(["build", "digits", "-o", str(tmp_path), "--report", str(where)]) == 0
    assert f"wrote {where}" in capsys.readouterr().out
    rows = json.loads(where.read_text())
    assert all(r["sqnr_db"] is None or r["sqnr_db"] >= r["minmax_sqnr_db"] - 0.01 for r in rows)
    assert len(rows) > 8
