"""Records that must be there after a kill, a power cut, a full or a damaged disk; and bounds that are never silent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from agent.journal import Journal

MB = 1 << 20
SIZE = 64  # of an empty record


class World:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.wall, self.now = 1_700_000_000.0, 100.0

    def pass_s(self, seconds: float) -> None:
        self.wall += seconds
        self.now += seconds


@pytest.fixture
def journal(tmp_path: Path, stack):
    def make(path: Path | None = None, max_bytes: int = MB, world: World | None = None, **options) -> Journal:
        if world is not None:
            options |= {"wall_ns": lambda: int(world.wall * 1e9), "clock": lambda: world.now}
        journal = Journal(path or tmp_path / "journal.db", max_bytes, **options)
        stack.callback(journal.close)
        return journal

    return make


def _put(journal: Journal, *bodies: bytes) -> list[int | None]:
    """Stores the bodies, perhaps in one commit; their numbers."""
    outcome: list[int | None] = []
    done = threading.Event()

    def stored(seq: int | None) -> None:
        outcome.append(seq)
        if len(outcome) == len(bodies):
            done.set()

    for body in bodies:
        journal.put(b"", body, stored)
    assert done.wait(20)
    return outcome


def _fill(file: BinaryIO) -> None:
    while True:
        file.write(bytes(4096))


def _bodies(journal: Journal) -> list[bytes]:
    return [r.body for r in journal.read(0, count=10_000)]


def test_records_are_there_in_order_after_a_restart(journal) -> None:
    first = journal()
    assert _put(first, b"a", b"b", b"c") == [1, 2, 3]
    first.remove(2)
    first.close()
    again = journal()
    assert [(r.seq, r.body) for r in again.read(0)] == [(1, b"a"), (3, b"c")]
    assert (again.count, again.bytes, again.last) == (2, 2 * (SIZE + 1), 3)
    assert _put(again, b"d") == [4]


def test_reading_is_bounded_in_records_and_bytes(journal) -> None:
    j = journal()
    _put(j, bytes(10), bytes(500), bytes(10), bytes(10))
    assert [r.seq for r in j.read(0, count=3)] == [1, 2, 3]
    assert [r.seq for r in j.read(0, size=11)] == [1, 2]
    assert [r.seq for r in j.read(1, size=1)] == [2]
    assert j.read(4) == []


def test_past_its_bytes_it_refuses(journal) -> None:
    j = journal(max_bytes=3 * (SIZE + 10))
    assert _put(j, *[bytes(10)] * 4) == [1, 2, 3, None]
    j.remove(1)
    assert _put(j, bytes(10)) == [4]


def test_past_its_bytes_it_drops_the_oldest_and_says_so(journal) -> None:
    drops: list[tuple[str, int]] = []
    j = journal(max_bytes=3 * (SIZE + 10), drop_oldest=True, dropped=lambda *a: drops.append(a))
    for i in range(5):
        _put(j, bytes([i]) * 10)
    assert [body[0] for body in _bodies(j)] == [2, 3, 4]
    assert drops == [("bytes", 1)] * 2
    assert _put(j, bytes(1000)) == [None]  # what could never fit pushes nothing out
    assert j.count == 3
    _put(j, bytes(10 + SIZE + 10))
    assert drops[2:] == [("bytes", 2)]
    assert [r.seq for r in j.read(0)] == [5, 6]


def test_past_their_age_records_are_dropped_and_said_so(journal) -> None:
    drops: list[tuple[str, int]] = []
    world = World()
    j = journal(world=world, max_age_s=60, drop_oldest=True, dropped=lambda *a: drops.append(a))
    _put(j, b"a", b"b")
    world.pass_s(50)
    _put(j, b"c")
    world.pass_s(11)
    _put(j, b"d")
    assert _bodies(j) == [b"c", b"d"]
    assert drops == [("age", 2)]  # and nothing where nothing was
    j.close()
    world.pass_s(1000)  # the box was off
    again = journal(world=world, max_age_s=60, drop_oldest=True, dropped=lambda *a: drops.append(a))
    _put(again, b"e")
    assert _bodies(again) == [b"e"]


def test_a_clock_that_jumps_drops_nothing(journal) -> None:
    world = World()
    world.wall = 10.0  # no battery: 1970
    j = journal(world=world, max_age_s=60, drop_oldest=True)
    _put(j, b"a")
    world.wall = 1.7e9
    world.now += 30
    _put(j, b"b")
    assert _bodies(j) == [b"a", b"b"]
    world.wall = 10.0
    world.now += 20
    _put(j, b"c")
    assert len(_bodies(j)) == 3
    world.now += 41
    _put(j, b"d")
    assert _bodies(j) == [b"c", b"d"]
    assert j.read(0)[0].stored_us == 10_000_000


def test_what_is_under_way_is_not_dropped(journal) -> None:
    world = World()
    j = journal(world=world, max_bytes=2 * (SIZE + 1), max_age_s=60, drop_oldest=True)
    _put(j, b"a", b"b")
    j.keep_until = 1
    _put(j, b"c")
    assert _bodies(j) == [b"a", b"c"]
    world.pass_s(100)
    _put(j, b"d")
    assert _bodies(j) == [b"a", b"d"]


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(journal, tmp_path: Path, caplog, damage: str) -> None:
    path = tmp_path / "journal.db"
    j = journal()
    _put(j, *[bytes(3000)] * 20)
    j.close()
    data = bytearray(path.read_bytes())
    data[:] = {"header": b"\xff" * 100 + data[100:], "middle": data[:4096] + b"\xff" * (len(data) - 4096),
               "text": b"not a database " * 100}[damage]  # fmt: skip
    path.write_bytes(data)
    again = journal()
    again.read(0)
    assert _put(again, b"new")[0] is not None
    assert _bodies(again) == [b"new"]
    assert again.corrupt == 1
    assert "damaged" in caplog.text
    assert (tmp_path / "journal.db.corrupt").read_bytes() == data


def test_a_file_of_another_process_is_left_alone(journal, caplog) -> None:
    first = journal()
    second = journal()
    assert "locked" in second.failure
    assert _put(second, b"x") == [None]
    assert _put(first, b"x") == [1]


def test_a_folder_that_is_not_writable_is_tried_again(journal, tmp_path: Path, caplog) -> None:
    world = World()
    (tmp_path / "state").write_text("a file where a folder should be")
    j = journal(tmp_path / "state" / "journal.db", world=world)
    assert _put(j, b"a", b"b") == [None, None]
    (tmp_path / "state").unlink()
    assert _put(j, b"c") == [None]  # not yet: a failed disk is left alone for a while
    assert j.failure
    world.pass_s(2)
    assert _put(j, b"d") == [1]
    assert j.failure is None
    assert "stores again" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_and_recovers(journal, tmp_path: Path, stack, caplog) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    stack.callback(subprocess.run, ["umount", "-l", folder], check=True)
    world = World()
    j = journal(folder / "journal.db", world=world)
    stored = _put(j, b"first")
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        _fill(file)
    assert None in _put(j, *[bytes(20_000)] * 20)
    assert j.failure
    assert [r.seq for r in j.read(0)][: len(stored)] == stored  # what was stored is still readable
    ballast.unlink()
    world.pass_s(2)
    assert None not in _put(j, b"again")
    assert _bodies(j)[0] == b"first"
    assert _bodies(j)[-1] == b"again"
    assert "stores again" in caplog.text
    j.close()


def test_a_file_grown_large_shrinks_when_it_is_empty(journal, tmp_path: Path) -> None:
    j = journal(max_bytes=64 * MB)
    seqs = _put(j, *[os.urandom(100_000)] * 120)
    j.close()
    path = tmp_path / "journal.db"
    assert path.stat().st_size > 10 * MB
    j = journal(max_bytes=64 * MB)
    for seq in seqs:
        j.remove(seq)
    j.close()
    assert path.stat().st_size < MB


_CHILD = """
import os, random, sys, time
from agent.journal import Journal
path, start, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
shuffle = random.Random(seed)
journal = Journal(path, 1 << 30)
for i in range(start, start + 100_000):
    body = b"%d " % i + bytes(shuffle.randrange(5000))
    journal.put(b"", body, lambda seq, i=i: os.write(1, b"%d %d\\n" % (i, seq)))
    if shuffle.random() < 0.1:
        time.sleep(shuffle.random() * 0.003)
"""


def test_killed_at_random_moments_it_has_all_that_it_said_was_stored(tmp_path: Path) -> None:
    chance = random.Random(5)
    path, start, acknowledged = tmp_path / "journal.db", 0, []
    for seed in range(12):
        child = subprocess.Popen([sys.executable, "-c", _CHILD, path, str(start), str(seed)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(chance.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        lines = (first + child.stdout.read()).decode().splitlines(keepends=True)
        child.wait()
        acknowledged += [int(line.split()[0]) for line in lines if line.endswith("\n")]
        start = acknowledged[-1] + 10_000  # a number is used once
        journal = Journal(path, 1 << 30)
        found = [int(body.split()[0]) for body in (r.body for r in journal.read(0, 1_000_000, 1 << 30))]
        assert found == sorted(set(found))
        assert set(acknowledged) <= set(found)
        assert journal.count == len(found)
        journal.close()
    assert len(acknowledged) > 12
