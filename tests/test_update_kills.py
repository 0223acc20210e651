"""The daemon is killed at every step of an update: the next start serves the old release or the new one, whole, and
says which. docs/updates.md has the table.
"""

from __future__ import annotations

import pytest

from tests.updates.kills import KILLS, Kill, Outcome, good, play_all


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Kill, Outcome | Exception]:
    return play_all(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("kill", KILLS, ids=[f"{k.way.name}, {k.point}" for k in KILLS])
def test_killed_at_any_step_serves_one_whole_release_and_says_which(
    kill: Kill, outcomes: dict[Kill, Outcome | Exception]
) -> None:
    outcome = outcomes[kill]
    if isinstance(outcome, Exception):
        raise outcome
    assert good(kill, outcome), outcome
