"""Which devices may take a release, and when: a rollout from a person's words, and its changes in the repository.

stages("5%,25%@24h,100%@72h", now)     # 5% at once, 25% from tomorrow on, all after three days
"""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

import msgspec

from agent.errors import Int8dError
from agent.repository.release import Release, Rollout, Stage, custom_of
from models.repository.repository import Entry, Repository

_STAGE = re.compile(r"(\d+(?:\.\d+)?)%?(?:@(\d+(?:\.\d+)?)([smhd])|@(\d{4}-.+))?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SPEC = "percent of the devices, or stages: 5%,25%@24h,100%@72h, from now (s, m, h, d) or from a date (2026-12-01T08:00)"


def stages(spec: str, now: float) -> tuple[Stage, ...]:
    """Stages of a spec as in ``SPEC``. now: seconds since 1970. A date without an offset is UTC.

    Raises ``Int8dError``: no such spec; a percentage outside 0..100, or below the one before; times out of order.
    """
    found: list[Stage] = []
    for part in spec.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise Int8dError(f"rollout '{spec}': '{part.strip()}' is no stage; {SPEC}")
        percent, count, unit, date = match.groups()
        at = int(now + float(count) * _UNITS[unit]) if count else _seconds(date, spec) if date else 0
        found.append(Stage(float(percent), at))
    for stage in found:
        if not 0 <= stage.percent <= 100:
            raise Int8dError(f"rollout '{spec}': {stage.percent:g}% is not within 0..100%")
    for before, after in itertools.pairwise(found):
        if after.at <= before.at:
            raise Int8dError(f"rollout '{spec}': each stage after the first takes a later time, for example 100%@24h")
        if after.percent < before.percent:
            raise Int8dError(
                f"rollout '{spec}': {after.percent:g}% after {before.percent:g}%: a release can't be taken back"
            )
    return tuple(found)


def described(rollout: Rollout, now: float) -> str:
    """For people: what holds at ``now``, and what is to come."""
    if rollout.aborted:
        return "aborted"
    times = [
        f"{s.percent:g}% from {datetime.fromtimestamp(s.at, UTC):%Y-%m-%d %H:%M}Z" for s in rollout.stages if s.at > now
    ]
    return ", ".join([f"{rollout.percent(now):g}%", *times])


def threshold(share: float) -> float:
    """An abort threshold, checked. Raises ``Int8dError`` outside 0..1."""
    if not 0 <= share <= 1:
        raise Int8dError(f"an abort threshold of {share:g}: it is a share of the devices, 0..1")
    return share


def set_stages(
    repository: Repository, entry: Entry, new: tuple[Stage, ...], abort_threshold: float | None = None
) -> Release:
    """Gives a release other stages, which also takes up one that was aborted; the devices' order stays."""
    old = entry.release.rollout
    share = old.abort_threshold if abort_threshold is None else threshold(abort_threshold)
    return _change(repository, entry, msgspec.structs.replace(old, stages=new, abort_threshold=share, aborted=False))


def abort(repository: Repository, entry: Entry) -> Release:
    """No device takes the release any more; those that have it keep it."""
    return _change(repository, entry, msgspec.structs.replace(entry.release.rollout, aborted=True))


def _change(repository: Repository, entry: Entry, rollout: Rollout) -> Release:
    release = msgspec.structs.replace(entry.release, rollout=rollout)
    repository.describe(entry.path, custom_of(release))
    repository.commit("targets")
    return release


def _seconds(date: str, spec: str) -> int:
    try:
        at = datetime.fromisoformat(date)
    except ValueError as e:
        raise Int8dError(f"rollout '{spec}': '{date}' is not a date as 2026-12-01T08:00") from e
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
