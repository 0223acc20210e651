"""A release's file comes whole, from where it broke off, within the limits of disk and network."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.config.tables import Updates
from agent.repository import fetch
from agent.repository.fetch import Ask, Fetched
from agent.repository.https import Https
from agent.repository.pace import BURST_S, Pace, Patience
from agent.repository.reasons import Refused
from agent.repository.release import Release, Target
from agent.updates import child
from tests.updates.web import Handler, Web, other_part

MODEL = random.Random(1).randbytes(1_000_003)
PATH = "digits/1.int8.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACK_OFF_S", 0.01)


@pytest.fixture
def web(tmp_path: Path, stack: ExitStack) -> Web:
    file = tmp_path / "repository" / "targets" / PATH
    file.parent.mkdir(parents=True)
    file.write_bytes(MODEL)
    web = Web(tmp_path / "repository")
    stack.callback(web.close)
    return web


def _ask(web: Web, folder: Path, min_free_bytes: int = 0) -> Ask:
    target = Target(Release("digits", 1), PATH, hashlib.sha256(MODEL).hexdigest(), len(MODEL))
    folder.mkdir(exist_ok=True)
    settings = Updates(repository=web.url, min_free_bytes=min_free_bytes)
    return Ask(target=target, part=str(folder / "it.part"), device="box1", settings=settings)


def _fetch(ask: Ask, progress: child.Progress = lambda done: None) -> Fetched:
    return fetch.fetch(ask, Https(ask.settings), progress)


def test_after_a_kill_only_the_rest_is_transferred(web: Web, tmp_path: Path) -> None:
    def slowly(handler: Handler, data: bytes) -> None:
        handler.head(200, len(data))
        handler.body(data, 0, piece=20_000, pause_s=0.02)

    web.hostile[PATH] = slowly
    ask, killed = _ask(web, tmp_path / "staging"), threading.Event()

    def kill(done: int) -> None:
        if done > len(MODEL) // 4:
            killed.set()

    with pytest.raises(Refused) as caught:
        child.run("fetch", ask, Fetched, 60, kill, killed)  # stopped, the child is killed
    assert caught.value.code == "interrupted"
    have = Path(ask.part).stat().st_size
    assert len(MODEL) // 4 < have < len(MODEL)
    web.hostile.clear()
    assert child.run("fetch", ask, Fetched, 60) == Fetched(len(MODEL), len(MODEL) - have)
    assert web.served[-1] == (f"/targets/{PATH}", have, len(MODEL) - have)
    assert Path(ask.part).read_bytes() == MODEL


def test_a_connection_that_breaks_again_and_again_is_taken_up_where_it_broke(web: Web, tmp_path: Path) -> None:
    def breaks(handler: Handler, data: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest = data[start:]
        handler.head(206 if start else 200, len(rest), {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        handler.body(rest[:100_000], start)

    web.hostile[PATH] = breaks
    ask = _ask(web, tmp_path / "staging")
    assert _fetch(ask).transferred == len(MODEL)
    assert Path(ask.part).read_bytes() == MODEL
    assert web.sent(PATH) == len(MODEL)


def test_a_server_without_ranges_gives_the_whole_file_and_the_part_goes_on(web: Web, tmp_path: Path) -> None:
    web.ranges = False
    ask = _ask(web, tmp_path / "staging")
    Path(ask.part).write_bytes(MODEL[:300_000])
    assert _fetch(ask).transferred == len(MODEL) - 300_000
    assert Path(ask.part).read_bytes() == MODEL


def test_a_server_that_gives_another_part_is_no_repository(web: Web, tmp_path: Path) -> None:
    web.hostile[PATH] = other_part
    ask = _ask(web, tmp_path / "staging")
    Path(ask.part).write_bytes(MODEL[:300_000])
    with pytest.raises(Refused, match="from byte 300000") as caught:
        _fetch(ask)
    assert caught.value.code == "not_a_repository"


@pytest.mark.parametrize("pause_s", [0.0, 0.2], ids=["at once", "after the signed bytes have been read"])
def test_of_a_server_that_sends_more_than_is_signed_nothing_is_kept(web: Web, tmp_path: Path, pause_s: float) -> None:
    def more(handler: Handler, data: bytes) -> None:
        handler.head(200, None)
        handler.body(data, 0, piece=len(data), pause_s=pause_s)
        handler.body(b"more", len(data))

    web.hostile[PATH] = more
    ask = _ask(web, tmp_path / "staging")
    with pytest.raises(Refused, match="that are signed") as caught:
        _fetch(ask)
    assert caught.value.code == "endless_data"
    assert Path(ask.part).read_bytes() == b""
    web.hostile.clear()
    assert _fetch(ask) == Fetched(len(MODEL), len(MODEL))


@pytest.mark.parametrize("part", [bytes(300_000), MODEL[:-1] + b"?", MODEL + b"more"], ids=["zeros", "wrong", "longer"])
def test_a_part_that_a_power_cut_spoiled_is_fetched_anew(web: Web, tmp_path: Path, part: bytes) -> None:
    ask = _ask(web, tmp_path / "staging")
    Path(ask.part).write_bytes(part)
    assert _fetch(ask).bytes == len(MODEL)
    assert Path(ask.part).read_bytes() == MODEL


def test_a_part_that_is_whole_takes_no_network(web: Web, tmp_path: Path) -> None:
    ask = _ask(web, tmp_path / "staging")
    Path(ask.part).write_bytes(MODEL)
    assert _fetch(ask) == Fetched(len(MODEL), 0)
    assert web.served == []


def test_progress_rises_to_the_whole_length(web: Web, tmp_path: Path) -> None:
    told: list[int] = []
    _fetch(_ask(web, tmp_path / "staging"), told.append)
    assert told == sorted(told)
    assert told[-1] == len(MODEL)


def test_without_enough_space_nothing_is_fetched(web: Web, tmp_path: Path) -> None:
    ask = _ask(web, tmp_path / "staging", min_free_bytes=1 << 62)
    with pytest.raises(Refused, match=r"updates\.min_free_bytes") as caught:
        _fetch(ask)
    assert caught.value.code == "no_space"
    assert web.served == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_in_the_middle_gets_its_space_back(web: Web, tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    stack.callback(subprocess.run, ["umount", "-l", folder], check=True)
    ask = _ask(web, folder)

    def another_writes(done: int) -> None:
        (folder / "ballast").write_bytes(bytes(800_000))

    with pytest.raises(Refused, match="free some space") as caught:
        _fetch(ask, another_writes)
    assert caught.value.code == "no_space"
    assert [path.name for path in folder.iterdir()] == ["ballast"]
    (folder / "ballast").unlink()
    assert _fetch(ask).bytes == len(MODEL)


class Clock:
    """Passes only while it sleeps."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_the_limit_counts_bytes_over_all_files() -> None:
    clock = Clock()
    pace = Pace(1000, clock, clock.sleep)
    for count in (1, 99, 900, 4000, 5000):
        pace.spend(count)
    assert clock.slept == pytest.approx(10_000 / 1000 - BURST_S)


def test_time_that_passed_is_no_credit_beyond_a_moment() -> None:
    clock = Clock()
    pace = Pace(1000, clock, clock.sleep)
    pace.spend(1000)
    clock.now += 3600
    before = clock.slept
    pace.spend(2000)
    assert clock.slept - before == pytest.approx(2.0 - BURST_S)


def test_bytes_are_read_in_pieces_that_the_limit_pays_for_soon() -> None:
    assert Pace(100_000).piece <= 100_000 / 4
    assert Pace(0).piece == Pace(10_000_000).piece


def test_the_limit_holds_over_http(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Pace, "spend", lambda self, count: spent.append(count))
    _fetch(_ask(web, tmp_path / "staging"))
    assert sum(spent) == len(MODEL)


def test_slow_is_judged_by_the_average_of_the_waiting() -> None:
    patience = Patience(1000, 10.0)
    for _ in range(30):
        patience.came(5000, 4.9)  # 1020 a second
    patience.came(0, 9.0)
    with pytest.raises(Refused, match="9 bytes") as caught:
        patience.came(9, 1.5)
    assert caught.value.code == "too_slow"
