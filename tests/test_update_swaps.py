"""Updates under traffic; `python -m tests.updates swaps` takes a thousand of them."""

from __future__ import annotations

from pathlib import Path

from tests.updates.swaps import swaps


def test_updates_under_traffic_lose_no_message_and_each_answer_shows_its_release(tmp_path: Path) -> None:
    result = swaps(tmp_path, count=4, rate=100)
    assert result.messages > 100
    assert result.unanswered == result.twice == result.backwards == 0
    assert result.answered_by == 5
    refused = [text for text in result.wrong if "expired" not in text]  # a busy box may be late
    assert refused == []
