"""What was under work when the process died is counted, once, and survives whatever the death left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.serving.strikes import MAX_TOGETHER, Strikes

A, B, C = bytes([1]) * 16, bytes([2]) * 16, bytes([3]) * 16
_DIE = """
import os, signal, sys
from pathlib import Path
from agent.serving.strikes import Strikes
strikes = Strikes(Path(sys.argv[1]), workers=2, sync=sys.argv[2] == "sync")
strikes.begin(0, [bytes([1]) * 16])
strikes.end(0, [bytes([1]) * 16])
strikes.begin(0, [bytes([2]) * 16])
strikes.begin(1, [bytes([3]) * 16, bytes([4]) * 16, bytes([3]) * 16, bytes([2]) * 16])
os.kill(os.getpid(), getattr(signal, sys.argv[3]))
"""


def _die(folder: Path, sync: str = "", number: str = "SIGKILL") -> None:
    done = subprocess.run([sys.executable, "-c", _DIE, str(folder), sync, number], capture_output=True, check=False)
    assert done.returncode == -getattr(signal, number), done.stderr


@pytest.mark.parametrize("sync", ["", "sync"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV"])
def test_what_was_under_work_at_a_death_is_counted_and_what_was_done_is_not(tmp_path, sync: str, number: str) -> None:
    _die(tmp_path, sync, number)
    strikes = Strikes(tmp_path)
    assert [strikes.count(d) for d in (A, B, C, bytes([4]) * 16)] == [0, 1, 1, 1]
    assert not strikes.out(B)
    assert strikes.any
    strikes.close()
    _die(tmp_path, sync, number)
    strikes = Strikes(tmp_path)
    assert (strikes.count(A), strikes.count(B)) == (0, 2)
    assert strikes.out(B)
    assert not strikes.any  # who is out is not touched again, so nobody need run alone


def test_a_death_is_one_strike_however_often_the_input_was_under_work(tmp_path) -> None:
    _die(tmp_path)
    strikes = Strikes(tmp_path)
    assert [strikes.count(d) for d in (B, C)] == [1, 1]
    strikes.begin(0, [B, B])
    strikes.end(0, [B, B])
    assert strikes.count(B) == 0


def test_what_comes_through_is_forgiven_on_disk_too(tmp_path) -> None:
    _die(tmp_path)
    strikes = Strikes(tmp_path)
    strikes.begin(0, [B])
    strikes.end(0, [B])
    strikes.close()
    assert Strikes(tmp_path).count(B) == 0


def test_an_orderly_end_counts_nothing(tmp_path) -> None:
    strikes = Strikes(tmp_path)
    strikes.begin(0, [A])  # a long job that the stop did not wait for
    strikes.close()
    assert Strikes(tmp_path).count(A) == 0


def test_a_death_between_counting_and_beginning_anew_does_not_count_twice(tmp_path) -> None:
    _die(tmp_path)
    left = (tmp_path / "working").read_bytes()
    Strikes(tmp_path)
    (tmp_path / "working").write_bytes(left)  # as if the new file had never been begun
    assert Strikes(tmp_path).count(B) == 1


def test_another_release_gives_every_input_a_new_chance(tmp_path) -> None:
    _die(tmp_path)
    assert Strikes(tmp_path, release="").count(B) == 1
    assert Strikes(tmp_path, release="int8d 2").count(B) == 0


def test_a_release_that_comes_while_it_runs_does_so_too(tmp_path) -> None:
    _die(tmp_path)
    strikes = Strikes(tmp_path, most=1, release="")
    assert strikes.out(B)
    strikes.renew("another")
    assert (strikes.out(B), strikes.any) == (False, False)
    strikes.begin(0, [B])  # and dies
    assert Strikes(tmp_path, most=1, release="another").out(B)
    assert not Strikes(tmp_path, most=1, release="").out(B)


@pytest.mark.parametrize("name", ["working", "strikes.json"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 7, b"int8d-w1" + b"\xff" * 500, b'{"strikes": 7}'])
def test_damaged_files_begin_anew(tmp_path, name: str, damage: bytes) -> None:
    _die(tmp_path)
    Strikes(tmp_path)
    (tmp_path / name).write_bytes(damage)
    strikes = Strikes(tmp_path)
    strikes.begin(0, [A])
    strikes.end(0, [A])
    assert strikes.count(A) == 0


def test_a_folder_that_cannot_be_written_costs_the_counting_and_no_more(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    strikes = Strikes(tmp_path / "file" / "state")
    assert not strikes.working
    assert "no strikes are counted" in caplog.text
    strikes.begin(0, [A])
    strikes.end(0, [A])
    assert not strikes.out(A)


def test_a_large_batch_and_many_strikes_are_bounded(tmp_path) -> None:
    many = [os.urandom(16) for _ in range(MAX_TOGETHER + 10)]
    strikes = Strikes(tmp_path)
    strikes.begin(0, many)
    strikes._working = None  # the process is gone
    again = Strikes(tmp_path, remember=5)
    assert sum(again.count(d) for d in many) == 5
