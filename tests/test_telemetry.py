"""Histograms, statistics, Prometheus' exposition: what is counted comes out as it went in."""

from __future__ import annotations

import json
import random
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.serving.request import STAGES, Ledger
from agent.telemetry import fleet, metrics
from agent.telemetry.fleet_table import Device, fleet_row
from agent.telemetry.histogram import BUCKETS, Histogram, bucket_of, upper
from agent.telemetry.prometheus import Buckets, Family, Sample, exposition
from agent.telemetry.stats import Stats
from agent.updates.status import STATES, Reason, Status, Version

ABOUT = {"device": "box1", "int8d": "1.0", "models": {"digits": {"version": "1", "backend": "native", "isa": "avx2"}}}


def _ledger(total_ns: int) -> Ledger:
    """One whose stages take a sixth of the time each, and publish the rest."""
    part = total_ns // 6
    stages = dict.fromkeys(STAGES[:-1], part) | {"publish": total_ns - 4 * part}
    return Ledger(received=1000, stages=stages, _last=1000 + total_ns)


def _durations(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [int(draw.lognormvariate(12.5, 1.5)) for _ in range(count)]


def test_every_value_lies_in_its_bucket_and_buckets_follow_one_another() -> None:
    assert [upper(b) for b in range(20)] == [*range(18), 18, 19]
    for bucket in range(1, BUCKETS):
        assert upper(bucket - 1) < upper(bucket)
        assert bucket_of(upper(bucket)) == bucket
        assert bucket_of(upper(bucket - 1) + 1) == bucket
    draw = random.Random(3)
    for _ in range(2000):
        value = draw.getrandbits(draw.randrange(1, 49))
        histogram = Histogram()
        histogram.add(value)
        assert histogram.counts.index(1) == bucket_of(value)


def test_what_is_too_long_and_what_is_negative_is_still_counted() -> None:
    histogram = Histogram()
    for value in (-5, 0, 1 << 50, 1 << 60):
        histogram.add(value)
    assert (histogram.total, histogram.max, histogram.sum) == (4, 1 << 60, (1 << 50) + (1 << 60))
    assert histogram.percentile(50) == 0
    assert histogram.percentile(100) == 1 << 60


def test_packed_histograms_merge_into_that_of_all_values() -> None:
    values = _durations(5000, 1)
    whole, merged = Histogram(), Histogram()
    for start in range(0, 5000, 1000):
        part = Histogram()
        for value in values[start : start + 1000]:
            part.add(value)
            whole.add(value)
        merged.merge(Histogram.unpack(json.loads(json.dumps(part.pack()))))
    assert (merged.counts, merged.sum, merged.max) == (whole.counts, whole.sum, whole.max)
    assert Histogram.unpack(Histogram().pack()).total == 0


@pytest.mark.parametrize("packed", [
    None, 7, [], {}, {"sum": 1, "max": 1}, {"sum": 1, "max": 1, "buckets": [1]},
    {"sum": 1, "max": 1, "buckets": [9999, 1]},
    {"sum": 1, "max": 1, "buckets": [-1, 1]}, {"sum": 1, "max": 1, "buckets": [1, 1.5]},
    {"sum": "1", "max": 1, "buckets": []},
    {"sum": True, "max": 1, "buckets": []}, {"sum": 1, "max": 1, "buckets": {"1": 2}},
])  # fmt: skip
def test_what_is_no_packed_histogram_is_refused(packed: object) -> None:
    with pytest.raises(ValueError, match="packed histogram"):
        Histogram.unpack(packed)


def test_counts_from_many_threads_are_exact() -> None:
    stats = Stats(ABOUT)

    def work(seed: int) -> None:
        for ns in _durations(2000, seed):
            stats.count("received")
            stats.answered("digits", _ledger(ns))
            stats.refused(f"code{seed % 2}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = stats.snapshot()
        for histogram in seen.latency.get("digits", {}).values():
            assert histogram.total == seen.counters["answered"]  # one moment, not several
    seen = stats.snapshot()
    assert (seen.counters["received"], seen.counters["answered"], seen.counters["refused"]) == (8000, 8000, 8000)
    assert seen.refusals == {"code0": 4000, "code1": 4000}
    assert seen.latency["digits"].keys() == {*STAGES, "total"}
    assert seen.latency["digits"]["total"].sum == sum(sum(_durations(2000, seed)) for seed in range(4))


def test_the_document_says_what_was_counted_and_stays_small() -> None:
    stats = Stats(ABOUT)
    for ns in _durations(20_000, 5):
        stats.answered("digits", _ledger(ns))
    for bits in range(10, 48):  # as spread as no model is
        for step in range(16):
            stats.answered("digits", _ledger((16 + step) << (bits - 4)))
    text = stats.document(queued=3)
    document = json.loads(text)
    total = document["latency_us"]["digits"]["total"]
    assert set(total) == {"count", "p50", "p90", "p99", "p99.9", "max"}
    assert total["count"] == 20_000 + 38 * 16
    assert document["queued"] == 3
    histogram = Histogram.unpack(document["histograms_ns"]["digits"]["total"])
    assert histogram.total == total["count"]
    assert histogram.percentile(99) // 1000 == total["p99"]
    assert len(text) < 25_000
    histogram.counts = [10**9] * BUCKETS
    assert 6 * len(json.dumps(histogram.pack(), separators=(",", ":"))) < 60_000  # as docs/telemetry.md says


def test_a_fleets_percentiles_are_those_of_all_its_requests() -> None:
    whole, devices = Histogram(), {}
    for device in range(3):
        stats = Stats(ABOUT)
        for ns in _durations(500 * (device + 1), device):
            stats.answered("digits", _ledger(ns << device))  # one is slower than the other
            whole.add(ns << device)
        stats.refused("expired")
        devices[f"box{device}"] = Device("online", json.loads(stats.document()))
    merged = fleet.merge(entry.stats for entry in devices.values())
    assert merged.devices == 3
    assert merged.counters["answered"] == 3000
    assert merged.refusals == {"expired": 3}
    assert merged.latency["digits"]["total"].percentiles(50, 90, 99) == whole.percentiles(50, 90, 99)
    devices["stranger"] = Device("offline")
    row = fleet_row(devices)
    assert row[:2] == ("all", "3 online")
    assert row[5:9] == ("3000", "3", f"{whole.percentile(50) / 1e6:.2f} ms", f"{whole.percentile(99) / 1e6:.2f} ms")


@pytest.mark.parametrize("document", [
    None, 3, [], "x", {"counters": 5, "refusals": [], "histograms_ns": 1}, {"counters": {"answered": "9"}},
    {"histograms_ns": {"digits": 4}}, {"histograms_ns": {"digits": {"total": {"buckets": [1]}}}},
])  # fmt: skip
def test_a_strangers_document_spoils_only_its_own_share(document: object) -> None:
    stats = Stats(ABOUT)
    stats.answered("digits", _ledger(1000))
    merged = fleet.merge([document, json.loads(stats.document())])
    assert merged.counters["answered"] == 1
    assert merged.total().total == 1
    assert fleet_row({"a": Device("online", document)})[:2] == ("all", "1 online")


def test_updates_are_told_by_model() -> None:
    target = Version(8, "b" * 64)
    said = Status(device="box1", model="digits", state="fetching", job="IN_PROGRESS", serving=Version(7, "a" * 64),
                  target=target, bytes=1000, bytes_done=250, available=target, checked_unix_s=1.5e9)  # fmt: skip
    back = Status(device="box1", model="other", state="rolled_back", job="FAILED", target=target,
                  reason=Reason("latency", "12 ms"), repository=Reason("expired", "since yesterday"))  # fmt: skip
    page = metrics.page(Stats(ABOUT), 0, True, updates={"digits": said, "other": back}).decode()
    found = [line for line in page.splitlines() if line.startswith("int8d_update") and not line.endswith("} 0")]
    assert found == [
        'int8d_update_release{model="digits"} 7',
        'int8d_update_target_release{model="digits"} 8',
        'int8d_update_target_release{model="other"} 8',
        'int8d_update_available_release{model="digits"} 8',
        'int8d_update_state{model="digits",state="fetching"} 1',
        'int8d_update_state{model="other",state="rolled_back"} 1',
        'int8d_update_target_bytes{model="digits"} 1000',
        'int8d_update_fetched_bytes{model="digits"} 250',
        'int8d_update_checked_timestamp_seconds{model="digits"} 1500000000',
        'int8d_update_check_failing{model="other",reason="expired"} 1',
        'int8d_update_rolled_back{model="other",reason="latency"} 1',
    ]
    assert page.count("int8d_update_state{") == 2 * len(STATES)
    assert "int8d_update" not in metrics.page(Stats(ABOUT), 0, True).decode()


def test_the_exposition_by_hand() -> None:
    page = exposition([
        Family("a_total", "counter", "Line\nand \\ slash.", [Sample({}, 3), Sample({"x": 'q"uote\\ and\nline'}, 0.5)]),
        Family("empty", "gauge", "Nothing.", []),
        Family("h_seconds", "histogram", "H.", [Buckets({"m": "d"}, [0.001, 0.25], [1, 3], 4, 7.5)]),
    ])  # fmt: skip
    assert page.decode() == (
        "# HELP a_total Line\\nand \\\\ slash.\n# TYPE a_total counter\na_total 3\n"
        'a_total{x="q\\"uote\\\\ and\\nline"} 0.5\n'
        "# HELP h_seconds H.\n# TYPE h_seconds histogram\n"
        'h_seconds_bucket{m="d",le="0.001"} 1\nh_seconds_bucket{m="d",le="0.25"} 3\n'
        'h_seconds_bucket{m="d",le="+Inf"} 4\n'
        'h_seconds_sum{m="d"} 7.5\nh_seconds_count{m="d"} 4\n'
    )


@pytest.mark.parametrize(
    "value", ["", "plain", 'a"b', "a\\b", "a\\nb", "a\nb", "\\", '\\"', "ü ✓", "a{b}=,c", "\ud800"]
)
def test_another_parser_reads_label_values_back(value: str) -> None:
    page = exposition([Family("x", "gauge", "X.", [Sample({"label": value}, 1)])]).decode()
    [family] = text_string_to_metric_families(page)
    assert family.samples[0].labels == {"label": value.encode(errors="replace").decode()}


@pytest.mark.parametrize("value", [0, 1, -1, 0.1, 1e-9, 4.095e-06, 1e15, 2**53, 1e300, float("inf"), float("-inf")])
def test_another_parser_reads_numbers_back(value: float) -> None:
    [family] = text_string_to_metric_families(exposition([Family("x", "gauge", "X.", [Sample({}, value)])]).decode())
    assert family.samples[0].value == value


def test_buckets_count_exactly_the_requests_at_or_below_their_bounds() -> None:
    stats = Stats(ABOUT)
    durations = [*_durations(3000, 9), *metrics.BOUNDS_NS, *(ns + 1 for ns in metrics.BOUNDS_NS)]
    for ns in durations:
        stats.answered("digits", _ledger(ns))
    stats.refused("expired")
    page = metrics.page(stats, 2, True, {}).decode()
    found = {family.name: family for family in text_string_to_metric_families(page)}
    duration = found["int8d_inference_request_duration_seconds"]
    assert duration.type == "histogram"
    buckets = {s.labels["le"]: s for s in duration.samples if s.name.endswith("_bucket")}
    assert len(buckets) == len(metrics.BOUNDS_NS) + 1
    for le, sample in buckets.items():
        assert sample.labels["model"] == "digits"
        bound = float("inf") if le == "+Inf" else round(float(le) * 1e9)
        assert sample.value == sum(ns <= bound for ns in durations)
    values = {s.name: s.value for s in duration.samples if not s.name.endswith("_bucket")}
    assert values["int8d_inference_request_duration_seconds_count"] == len(durations) == buckets["+Inf"].value
    assert values["int8d_inference_request_duration_seconds_sum"] == pytest.approx(sum(durations) / 1e9, rel=1e-12)
    assert {f"int8d_inference_{stage}_duration_seconds" for stage in STAGES} < found.keys()
    [success] = found["int8d_inference_request_success"].samples
    assert (success.labels, success.value) == ({"model": "digits", "version": "1"}, len(durations))
    [failure] = found["int8d_inference_request_failure"].samples
    assert (failure.labels, failure.value) == ({"reason": "expired"}, 1)
    assert found["int8d_inference_pending_requests"].samples[0].value == 2
    assert found["int8d_broker_connected"].samples[0].value == 1
    assert found["process_resident_memory_bytes"].samples[0].value > 1e6


def test_an_outbox_is_told_where_there_is_one() -> None:
    stats = dict.fromkeys(("waiting", "waiting_bytes", "corrupt", "stored", "replayed", "unavailable"), 3)
    stats |= {"dropped_bytes": 1, "dropped_age": 2, "dropped_refused": 0, "failure": "disk full"}
    page = metrics.page(Stats(ABOUT), 0, True, outbox=stats).decode()
    assert "int8d_outbox_waiting_replies 3" in page
    assert "int8d_outbox_usable 0" in page
    assert 'int8d_outbox_dropped_total{reason="age"} 2' in page
    assert "int8d_outbox" not in metrics.page(Stats(ABOUT), 0, True).decode()


def test_drift_is_told_as_far_as_it_is_known() -> None:
    measures = {"classes": 0.25, "confidence": None, "inputs": {"x": 0.5, "y": None}}
    drift = {"digits": {"n": 7, "psi": measures}, "another": {"n": 1, "psi": measures}}
    page = metrics.page(Stats(ABOUT), 0, True, drift).decode()
    found = [line for line in page.splitlines() if line.startswith("int8d_drift")]
    assert found == [
        'int8d_drift_inferences{model="digits",version="1"} 7',
        'int8d_drift_psi{model="digits",version="1",of="classes"} 0.25',
        'int8d_drift_psi{model="digits",version="1",of="input x"} 0.5',
    ]


def test_a_topics_words_never_become_a_label() -> None:
    stats = Stats(ABOUT)
    stats.answered("a model of a stranger's topic", _ledger(1000))
    assert "stranger" not in metrics.page(stats, 0, False, {}).decode()


def test_answers_are_counted_by_the_batch_that_they_ran_in() -> None:
    stats = Stats({"models": {"digits": {"version": "1"}}})
    for size in (1, 4, 4, 4, 4):
        ledger = _ledger(1000)
        ledger.batch_size = size
        stats.answered("digits", ledger)
    assert json.loads(stats.document())["batch_sizes"] == {"digits": {"1": 1, "4": 4}}
    text = metrics.page(stats, 0, True, {}).decode()
    assert 'int8d_inference_batch_size_total{model="digits",version="1",batch_size="4"} 4' in text
