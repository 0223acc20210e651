"""``int8d-make rollout status``: a release in the fleet, counted from what real devices' topics hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.repository.reasons import CODES
from agent.repository.release import Release, Rollout, Stage, place
from agent.updates.status import STATES, Reason, Status, Version, job_of
from models.repository.fleet import count
from tests.agent_process import DIGITS, ROOT

OLD, NEW, NEWER = Version(7, "a" * 64), Version(8, "b" * 64), Version(9, "c" * 64)


def said(device: str, state: str = "idle", committed: Version = OLD, code: str = "", model: str = "digits") -> Status:
    reason = Reason(code, CODES[code]) if code else None
    return Status(device=device, model=model, state=state, job=job_of(state), serving=committed,  # type: ignore[arg-type]
                  committed=committed, target=NEW if state != "idle" else None, reason=reason)  # fmt: skip


def counted(*statuses: Status, release: Release | None = None, limit: float | None = None) -> dict[str, Any]:
    return msgspec.to_builtins(count(statuses, "digits", 8, release, 1000.0, limit))


def test_each_device_is_counted_once_where_it_stands() -> None:
    under_way = [said(f"w{state}", state) for state in STATES if job_of(state) == "IN_PROGRESS"]
    found = counted(
        said("idle"), said("still", "committed"), *under_way,
        said("done", "committed", NEW), said("done2", "idle", NEW),
        said("beyond", "idle", NEWER), said("bad", "rolled_back", code="latency"),
        said("bad2", "rolled_back", code="latency"), said("bad3", "rolled_back", code="crashed"),
        said("other", "committed", NEW, model="faces"),
    )  # fmt: skip
    assert found["devices"] == 12
    assert (found["waiting"], found["committed"], found["newer"]) == (2, 2, 1)
    assert found["in_progress"] == {"fetching": 1, "fetched": 1, "tested": 1, "pending": 1}
    assert found["rolled_back"] == {"latency": 2, "crashed": 1}
    assert found["failure_share"] == 3 / 5


def test_who_cannot_go_on_is_counted_by_what_hinders_him() -> None:
    def hindered(status: Status, code: str) -> Status:
        return msgspec.structs.replace(status, repository=Reason(code, CODES[code]))

    found = counted(
        hindered(said("a"), "unreachable"), hindered(said("b", "fetching"), "no_space"), said("c", "fetching"),
        hindered(said("d", "committed", NEW), "unreachable"),
        hindered(said("e", "rolled_back", code="latency"), "expired"),
    )  # fmt: skip
    assert found["hindered"] == {"unreachable": 1, "no_space": 1}
    assert (found["waiting"], found["in_progress"]) == (1, {"fetching": 2})


@pytest.mark.parametrize(("good", "bad", "limit", "exceeded"), [
    (0, 0, None, False), (9, 1, None, True), (10, 1, None, False), (0, 1, None, True), (10, 1, 0.05, True),
    (9, 1, 0.5, False), (1, 0, 0.0, False),
])  # fmt: skip
def test_the_threshold_is_reached_by_the_share_of_those_that_are_through(
    good: int, bad: int, limit: float | None, exceeded: bool
) -> None:
    statuses = [said(f"g{i}", "committed", NEW) for i in range(good)]
    statuses += [said(f"b{i}", "rolled_back", code="errors") for i in range(bad)]
    statuses += [said(f"w{i}") for i in range(50)]
    assert counted(*statuses, limit=limit)["exceeded"] is exceeded


def test_who_waits_though_it_is_his_turn_is_due() -> None:
    rollout = Rollout((Stage(30.0), Stage(100.0, 2000)), salt="digits/8")
    found = counted(*(said(f"box{i}") for i in range(200)), release=Release("digits", 8, rollout=rollout))
    assert found["due"] == sum(place(f"box{i}", "digits/8") < 30 for i in range(200)) > 0
    assert (found["waiting"], found["percent"]) == (200, 30.0)


@pytest.fixture
def make(broker) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "models.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)

    return run


@pytest.fixture
def fleet(peer) -> None:
    """Nine that committed, one that went back, and a stranger."""
    client = peer("unused")
    statuses = [said(f"box{i}", "committed", NEW) for i in range(9)] + [said("box9", "rolled_back", code="latency")]
    for status in statuses:
        where = f"int8d/{status.device}/v2/repository/models/digits/status"
        client.client.publish(where, msgspec.json.encode(status), 1, retain=True).wait_for_publish(10)
    client.client.publish("int8d/x/v2/repository/models/digits/status", b"[", 1, retain=True).wait_for_publish(10)


def test_it_ends_with_3_where_the_threshold_is_reached(make, fleet, broker) -> None:
    options = ["--port", broker.port, "--wait", 0.3]
    done = make("rollout", "status", "digits", 8, *options, "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert (found["devices"], found["committed"], found["rolled_back"]) == (10, 9, {"latency": 1})
    assert (found["percent"], found["exceeded"]) == (None, True)
    done = make("rollout", "status", "digits", 8, *options, "--abort-threshold", 0.2)
    assert done.returncode == 0, done.stderr
    assert "rolled back  1: latency 1" in done.stdout
    done = make("rollout", "status", "faces", 8, *options)
    assert done.returncode == 2
    assert "no device says anything of model 'faces'" in done.stderr


def test_with_abort_it_stops_the_rollout(make, fleet, broker, tmp_path: Path) -> None:
    keys, repo = tmp_path / "keys", tmp_path / "repo"
    assert make("keys", "init", keys).returncode == 0
    signed = ["--repo", repo, "--keys", keys]
    done = make("publish", DIGITS, "--name", "digits", "--release", 8, *signed, "--rollout", "25%")
    assert done.returncode == 0, done.stderr
    options = [*signed, "--port", broker.port, "--wait", 0.3]
    done = make("rollout", "status", "digits", 8, *options)
    assert done.returncode == 3, done.stderr
    assert "it is the turn of 25 %" in done.stdout
    done = make("rollout", "status", "digits", 8, *options, "--abort")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "digits release 8: aborted"), done.stderr
    done = make("rollout", "status", "digits", 8, *options, "--json")
    assert (done.returncode, json.loads(done.stdout)["aborted"]) == (3, True)
