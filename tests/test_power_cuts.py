"""The power fails at each change that updates make on the disk. docs/updates.md has the table."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.updates.cuts import CASES, Case, play
from tests.updates.power import LOSSES, Loses


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Where a sync costs nothing: the cuts are at the calls, not at what a real disk does."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("loses", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_power_cut_at_any_change_of_the_disk_leaves_one_whole_release(case: Case, loses: Loses, memory: Path) -> None:
    outcome = play(case, loses, memory)
    assert outcome.wrong == []
    assert outcome.cuts > 3
