"""What must hold under fire, in short; ``make fire`` is the same at full length (docs/under-fire.md)."""

from __future__ import annotations

import pytest

from tests.fire import deadlines, hostile, overload, poison, soak


@pytest.mark.parametrize("policy", overload.POLICIES)
def test_ten_times_the_sustainable_load_is_answered_or_refused_in_flat_memory(policy: str) -> None:
    figures = overload.overload(policy, seconds=3)
    assert not overload.failures(figures, timed=False), figures


def test_a_deadline_behind_a_long_job_is_answered_at_its_moment() -> None:
    figures = deadlines.deadline(deadline_s=1, job_s=4)
    assert not deadlines.failures(figures, timed=False), figures


@pytest.mark.parametrize("what", ["crash", "hang"])
def test_a_poisonous_input_costs_two_restarts_and_nothing_else(what: str) -> None:
    figures = poison.poison(what, hang_timeout_s=1.0, bad=2)
    assert not poison.failures(figures), figures


def test_twenty_thousand_hostile_messages_are_each_answered_by_one_process_within_its_memory() -> None:
    figures = hostile.hostile(first=0, count=20_000)
    assert not hostile.failures(figures), figures


def test_a_day_in_seconds_with_all_its_restarts_leaves_nothing_unanswered() -> None:
    figures = soak.soak(messages=6000)  # memory is a matter of the long form: a process this young still grows
    assert not soak.failures(figures, most_pct=50), figures
    assert (figures["broker_restarts"], figures["reconnects"]) == (12, 48)
