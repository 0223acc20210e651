"""What ``/metrics`` tells: the daemon's counts as families of Prometheus.

Names follow Triton's (``nv_inference_request_success`` is ``int8d_inference_request_success_total``), in base units,
with true histograms in place of sums: docs/telemetry.md lists them. Every label's values are few and known: a topic or
a client's words never become one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from agent.serving.request import STAGES
from agent.telemetry.histogram import Histogram
from agent.telemetry.prometheus import Buckets, Family, Sample, exposition
from agent.telemetry.sensors import Reading
from agent.telemetry.stats import COUNTERS, Stats, resident_bytes
from agent.updates.status import STATES, Status

# Ends of the histogram's own buckets, two a power of two: what lies at or below one is counted, not estimated.
BOUNDS_NS = [(step << n) - 1 for n in range(11, 36) for step in (2, 3)]  # 4 us to 103 s
_BOUNDS_S = [ns / 1e9 for ns in BOUNDS_NS]
_TOLD_ELSEWHERE = ("answered", "refused")  # by model, by reason
_STAGE_HELP = {
    "queue": "From the receipt of an input to a worker.",
    "compute_input": "Decoding an input.",
    "compute_infer": "Running the model.",
    "compute_output": "Encoding the reply.",
    "publish": "From the encoded reply to its delivery.",
}


_NONE: Mapping[str, Any] = {}


def page(
    stats: Stats,
    queued: int,
    connected: bool,
    drift: Mapping[str, Mapping[str, Any]] = _NONE,
    outbox: Mapping[str, Any] = _NONE,
    updates: Mapping[str, Status] = _NONE,
) -> bytes:
    """``/metrics``. queued: requests that wait; connected: to the broker; drift: ``Drift.snapshot``; outbox:
    ``Outbox.stats``, empty where there is none; updates: where they stand, by model, as far as there are any.
    """
    return exposition([*families(stats, queued, connected, drift, outbox), *updates_metrics(updates)])


def families(
    stats: Stats, queued: int, connected: bool, drift: Mapping[str, Mapping[str, Any]], outbox: Mapping[str, Any]
) -> Iterator[Family]:
    """The families, in the order of the page."""
    s = stats.snapshot()
    models: Mapping[str, Mapping[str, Any]] = stats.about.get("models", {})
    labels = {name: {"model": name, "version": str(about.get("version", ""))} for name, about in models.items()}
    latency = {name: s.latency.get(name, {}) for name in models}

    yield _gauge("int8d_info", "This agent; always 1.",
                 Sample({"device": str(stats.about.get("device", "")), "version": str(stats.about.get("int8d", ""))},
                        1))  # fmt: skip
    yield _gauge("int8d_model_info", "A model that is served; always 1.", *(
        Sample(labels[name] | {"backend": str(about.get("backend", "")), "isa": str(about.get("isa", ""))}, 1)
        for name, about in models.items()
    ))  # fmt: skip
    yield Family("int8d_inference_request_success_total", "counter", COUNTERS["answered"], [
        Sample(labels[name], stages["total"].total if "total" in stages else 0) for name, stages in latency.items()
    ])  # fmt: skip
    yield Family("int8d_inference_request_failure_total", "counter", COUNTERS["refused"], [
        Sample({"reason": code}, count) for code, count in sorted(s.refusals.items())
    ])  # fmt: skip
    yield Family("int8d_model_failure_total", "counter", "Requests that a model failed, or was too late for.", [
        Sample(labels[name] | {"reason": code}, count)
        for name in models for code, count in sorted(s.failures.get(name, {}).items())
    ])  # fmt: skip
    yield Family("int8d_dead_letters_total", "counter", "Inputs put aside because the process died over them.", [
        Sample({}, s.refusals.get("poisoned", 0))
    ])  # fmt: skip
    yield Family("int8d_inference_batch_size_total", "counter", "Inferences by how many were computed together.", [
        Sample(labels[name] | {"batch_size": str(size)}, count)
        for name in models for size, count in sorted(s.batches.get(name, {}).items())
    ])  # fmt: skip
    for counter, help in COUNTERS.items():
        if counter not in _TOLD_ELSEWHERE:
            yield Family(f"int8d_{counter}_total", "counter", help, [Sample({}, s.counters[counter])])
    yield _gauge("int8d_inference_pending_requests", "Requests that wait for a worker.", Sample({}, queued))
    yield _gauge("int8d_broker_connected", "Whether the broker is connected and subscribed to.",
                 Sample({}, int(connected)))  # fmt: skip
    yield _histogram("int8d_inference_request_duration_seconds", "From receipt to delivery.", labels,
                     {name: stages.get("total") for name, stages in latency.items()})  # fmt: skip
    for stage in STAGES:
        yield _histogram(f"int8d_inference_{stage}_duration_seconds", _STAGE_HELP[stage], labels,
                         {name: stages.get(stage) for name, stages in latency.items()})  # fmt: skip
    yield _gauge("process_resident_memory_bytes", "Resident memory.", Sample({}, resident_bytes()))
    yield Family("process_cpu_seconds_total", "counter", "User and system CPU time spent.",
                 [Sample({}, time.process_time())])  # fmt: skip
    yield _gauge("process_start_time_seconds", "When the process started, in Unix time.",
                 Sample({}, stats.started_unix))  # fmt: skip
    yield _gauge("int8d_drift_inferences", "Inferences in the window that drift is judged by.", *(
        Sample(labels[name], found["n"]) for name, found in drift.items() if name in labels
    ))  # fmt: skip
    yield _gauge("int8d_drift_psi", "Population stability index against what was recorded with the model.", *(
        Sample(labels[name] | {"of": of}, psi)
        for name, found in drift.items() if name in labels for of, psi in _psi(found["psi"])
    ))  # fmt: skip
    if outbox:
        yield from _outbox(outbox)
    if stats.sensors is not None:
        yield from _sensors(stats.sensors.read())


def _outbox(found: Mapping[str, Any]) -> Iterator[Family]:
    yield _gauge("int8d_outbox_waiting_replies", "Stored replies that the broker has not confirmed.",
                 Sample({}, found["waiting"]))  # fmt: skip
    yield _gauge("int8d_outbox_waiting_bytes", "And their size.", Sample({}, found["waiting_bytes"]))
    yield _gauge("int8d_outbox_usable", "Whether replies can be stored.", Sample({}, int(found["failure"] is None)))
    for counter, help in (
        ("stored", "Replies stored before they were published."),
        ("replayed", "Replies of a backlog that the broker has confirmed."),
        ("unavailable", "Replies that could not be stored, and were published without."),
    ):
        yield Family(f"int8d_outbox_{counter}_total", "counter", help, [Sample({}, found[counter])])
    yield Family("int8d_outbox_dropped_total", "counter", "Stored replies that were given up.", [
        Sample({"reason": reason}, found[f"dropped_{reason}"]) for reason in ("bytes", "age", "refused")
    ])  # fmt: skip


def updates_metrics(statuses: Mapping[str, Status]) -> Iterator[Family]:
    """Where updates stand, by model. A time is told as such, so that its age can be had whenever it was scraped."""
    each = [({"model": name}, status) for name, status in statuses.items()]
    due = [(labels, s.available) for labels, s in each if s.available is not None]
    targets = [(labels, s, s.target) for labels, s in each if s.target is not None]
    yield _gauge("int8d_update_release", "The release that is served; 0 is the file that int8d.toml names.", *(
        Sample(labels, s.serving.release) for labels, s in each
    ))  # fmt: skip
    yield _gauge("int8d_update_target_release", "The release that the update under way, or the last one, is about.", *(
        Sample(labels, target.release) for labels, _, target in targets
    ))  # fmt: skip
    yield _gauge("int8d_update_available_release", "The release that the last check found to be due here.", *(
        Sample(labels, available.release) for labels, available in due
    ))  # fmt: skip
    yield _gauge("int8d_update_state", "Where the update stands; 1 for its state, 0 for the others.", *(
        Sample(labels | {"state": state}, int(s.state == state)) for labels, s in each for state in STATES
    ))  # fmt: skip
    yield _gauge("int8d_update_target_bytes", "Size of what is fetched.", *(
        Sample(labels, s.bytes) for labels, s in each if s.bytes
    ))  # fmt: skip
    yield _gauge("int8d_update_fetched_bytes", "And how much of it is here.", *(
        Sample(labels, s.bytes_done) for labels, s in each if s.bytes
    ))  # fmt: skip
    yield _gauge("int8d_update_checked_timestamp_seconds", "When the last check succeeded, in Unix time.", *(
        Sample(labels, s.checked_unix_s) for labels, s in each if s.checked_unix_s
    ))  # fmt: skip
    yield _gauge("int8d_update_check_failing", "Why the last check failed; 1 while it does.", *(
        Sample(labels | {"reason": s.repository.code}, 1) for labels, s in each if s.repository is not None
    ))  # fmt: skip
    yield _gauge("int8d_update_rolled_back", "Why the last update went back; 1 until the next one begins.", *(
        Sample(labels | {"reason": s.reason.code}, 1)
        for labels, s in each if s.reason is not None and s.state == "rolled_back"
    ))  # fmt: skip


def _psi(measures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``classes``, ``confidence`` and ``input NAME``, those that there are."""
    for of, psi in measures.items():
        if isinstance(psi, Mapping):
            yield from ((f"input {name}", x) for name, x in psi.items() if x is not None)
        elif psi is not None:
            yield of, psi


def _sensors(reading: Reading) -> Iterator[Family]:
    def each(label: str, values: Mapping[str, float]) -> list[Sample]:
        return [Sample({label: name}, value) for name, value in values.items()]

    yield _gauge("int8d_temperature_celsius", "Temperatures.", *each("sensor", reading.temperatures))
    yield _gauge("int8d_cpu_frequency_hertz", "Clocks of the CPU's domains.", *each("domain", reading.clocks))
    yield _gauge("int8d_cpu_frequency_limit_hertz", "What they may run at now.", *each("domain", reading.limits))
    yield _gauge("int8d_cpu_frequency_rated_hertz", "What they are made for.", *each("domain", reading.rated))
    if reading.throttled is not None:
        yield _gauge("int8d_cpu_throttled", "Whether a clock may not run as fast as it is made for.",
                     Sample({}, int(reading.throttled)))  # fmt: skip
    if reading.throttle_events is not None:
        yield Family("int8d_cpu_throttle_events_total", "counter", "Times that a CPU was throttled since boot.",
                     [Sample({}, reading.throttle_events)])  # fmt: skip
    yield _gauge("int8d_power_watts", "Power of a rail.", *each("rail", reading.watts))
    yield Family("int8d_energy_joules_total", "counter", "Energy since the agent started.",
                 each("domain", reading.joules))  # fmt: skip


def _gauge(name: str, help: str, *samples: Sample) -> Family:
    return Family(name, "gauge", help, samples)


def _histogram(
    name: str, help: str, labels: Mapping[str, Mapping[str, str]], found: Mapping[str, Histogram | None]
) -> Family:
    return Family(name, "histogram", help, [
        Buckets(labels[model], _BOUNDS_S, h.below(BOUNDS_NS), h.total, h.sum / 1e9)
        for model, h in found.items() if h is not None
    ])  # fmt: skip
