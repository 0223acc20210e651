"""How a release fares in the fleet, from what each device says of itself on its retained status topic.

    count(statuses, "digits", 8, release, time.time()).exceeded       # then it is to be aborted

A device that went back to the release before says so until its next update, and one that is switched off keeps its
last word on the broker, so no device must be there to be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from agent.repository.release import Release, Rollout
from agent.updates.status import STATES, Status


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that have the model, by where the release stands on them. Each is in one of: waiting, in_progress,
    committed, newer, rolled_back.

    waiting: neither here nor on its way; of these, due: it is their turn (0 where the rollout is not known).
    hindered: of those that wait or are at it, those that can't go on, by reason. newer: already beyond it.
    rolled_back: by reason. failure_share: of those that are through with it, 0..1. percent: of all devices whose turn
    it is; None where the rollout is not known.
    """

    model: str
    release: int
    devices: int
    waiting: int
    due: int
    in_progress: dict[str, int]
    hindered: dict[str, int]
    committed: int
    newer: int
    rolled_back: dict[str, int]
    failure_share: float
    abort_threshold: float
    exceeded: bool
    percent: float | None
    aborted: bool


def count(
    statuses: Iterable[Status], model: str, number: int, release: Release | None, now: float,
    abort_threshold: float | None = None,
) -> Count:  # fmt: skip
    """statuses: of any devices and models. release: as the repository has it, where that is known. now: seconds since
    1970. abort_threshold: in place of the release's.
    """
    rollout = Rollout() if release is None else release.rollout
    threshold = rollout.abort_threshold if abort_threshold is None else abort_threshold
    own = [s for s in statuses if s.model == model]
    waiting: list[Status] = []
    in_progress: Counter[str] = Counter()
    rolled_back: Counter[str] = Counter()
    hindered: Counter[str] = Counter()
    committed = newer = 0
    for status in own:
        target = 0 if status.target is None else status.target.release
        done = status.committed.release >= number or (target == number and status.state == "rolled_back")
        if status.repository is not None and not done:
            hindered[status.repository.code] += 1
        if status.committed.release > number:
            newer += 1
        elif status.committed.release == number:
            committed += 1
        elif target == number and status.job == "IN_PROGRESS":
            in_progress[status.state] += 1
        elif target == number and status.state == "rolled_back":
            rolled_back["unknown" if status.reason is None else status.reason.code] += 1
        else:
            waiting.append(status)
    failed = rolled_back.total()
    share = failed / (failed + committed) if failed else 0.0
    return Count(
        model=model, release=number, devices=len(own), waiting=len(waiting),
        due=0 if release is None else sum(rollout.includes(s.device, now) for s in waiting),
        in_progress={state: in_progress[state] for state in STATES if state in in_progress},
        hindered=dict(hindered.most_common()), committed=committed, newer=newer,
        rolled_back=dict(rolled_back.most_common()), failure_share=share,
        abort_threshold=threshold, exceeded=failed > 0 and share >= threshold,
        percent=None if release is None else rollout.percent(now), aborted=rollout.aborted,
    )  # fmt: skip


def as_text(found: Count) -> str:
    """For people: a line a fact."""
    due = "" if found.percent is None else f", {found.due} of them due"
    lines = [
        f"{found.model} {found.release}: {found.devices} devices" + _rollout(found),
        f"  waiting      {found.waiting}{due}",
        *(f"  {state:<12} {n}" for state, n in found.in_progress.items()),
        *([f"  hindered     {_by_code(found.hindered)}"] if found.hindered else []),
        f"  committed    {found.committed}",
        *([f"  newer        {found.newer}"] if found.newer else []),
        f"  rolled back  {_by_code(found.rolled_back)}",
        f"  failed       {100 * found.failure_share:.1f} %, "
        f"{'at or past' if found.exceeded else 'below'} the threshold of {100 * found.abort_threshold:g} %",
    ]
    return "\n".join(lines)


def _by_code(counts: dict[str, int]) -> str:
    reasons = ", ".join(f"{code} {n}" for code, n in counts.items())
    return f"{sum(counts.values())}: {reasons}" if counts else "0"


def _rollout(found: Count) -> str:
    if found.aborted:
        return ", the rollout is aborted"
    return "" if found.percent is None else f", it is the turn of {found.percent:g} %"
