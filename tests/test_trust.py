"""What a device takes from a repository, whoever stands between: the table of attacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.updates.attacks import ATTACKS, Attack, play


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_an_attack_is_refused_with_its_own_reason_and_leaves_nothing_behind(attack: Attack, tmp_path: Path) -> None:
    outcome = play(attack, tmp_path)
    assert outcome.code == attack.code, outcome.message
    if not attack.lasting:
        assert outcome.afterwards == "accepted"
