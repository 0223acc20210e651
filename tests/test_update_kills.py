"""The daemon is killed at every step of an update: the next start serves the old release or the new one, whole, and
says which. docs/updates.md has the table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.updates.kills import KILLS, Kill, good, play, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.mark.parametrize("kill", KILLS, ids=[f"{k.way.name}, {k.point}" for k in KILLS])
def test_killed_at_any_step_serves_one_whole_release_and_says_which(kill: Kill, prepared: Path, tmp_path: Path) -> None:
    outcome = play(kill, prepared, tmp_path)
    assert good(kill, outcome), outcome
