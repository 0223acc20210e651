"""The power fails at each change that updates make on the disk. docs/updates.md has the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.updates.cuts import CASES, Case, play
from tests.updates.power import LOSSES, Loses


@pytest.mark.parametrize("loses", LOSSES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_power_cut_at_any_change_of_the_disk_leaves_one_whole_release(
    case: Case, loses: Loses, tmp_path: Path
) -> None:
    outcome = play(case, loses, tmp_path)
    assert outcome.wrong == []
    assert outcome.cuts > 3
