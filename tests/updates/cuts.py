"""The table of power cuts: at each change that updates make on the disk the power fails, what was not synced is lost,
and the next start must serve the old release or the new one, whole, and say which.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.repository.reasons import Refused
from tests.updates.bare import MODEL, Bare
from tests.updates.power import LOSSES, Cut, Loses, PowerCut
from tests.updates.tables import table


def _first(device: Bare) -> None:
    device.update(1)


def _second(device: Bare) -> None:
    device.update(2)


def _back_by_hand(device: Bare) -> None:
    if device.machine.record.state != "rolled_back":
        device.machine.roll_back_committed(Refused("by_hand"))


@dataclass(frozen=True)
class Case:
    """releases: committed before. fails: by step. may: what may serve after the cut; end: when it was gone on with."""

    name: str
    releases: tuple[int, ...]
    may: frozenset[int]
    end: int
    act: Callable[[Bare], None] = _second
    fails: dict[str, Refused] = field(default_factory=dict, hash=False)


CASES = (
    Case("the first release", (), frozenset({0, 1}), 1, act=_first),
    Case("the second", (1,), frozenset({1, 2}), 2),
    Case("fails its test", (1,), frozenset({1}), 1, fails={"test": Refused("golden_differs")}),
    Case("fails while it looks on", (1,), frozenset({1}), 1, fails={"shadow": Refused("shadow_errors")}),
    Case("fails on probation", (1,), frozenset({1, 2}), 1, fails={"probation": Refused("errors")}),
    Case("taken back by hand", (1, 2), frozenset({1, 2}), 1, act=_back_by_hand),
)


@dataclass(frozen=True)
class Outcome:
    """cuts: how many were tried. old, new: what served after them. wrong: what must not be, in words."""

    cuts: int
    old: int
    new: int
    wrong: list[str]


def play(case: Case, loses: Loses, folder: Path) -> Outcome:
    """A cut before each change, and one after the last."""
    prepared = folder / "prepared"
    prepared.mkdir()
    for number in case.releases:
        Bare(prepared).update(number)
    shutil.copytree(prepared, folder / "counted", symlinks=True)
    with PowerCut(folder / "counted") as count:
        case.act(Bare(folder / "counted", case.fails))
    count.leave(folder / "whole")
    served: list[int] = []
    wrong: list[str] = []
    for at in range(count.points + 1):
        world, after = folder / "world", folder / "after"
        shutil.copytree(prepared, world, symlinks=True)
        ended = False
        with PowerCut(world, at, loses) as cut:
            try:
                case.act(Bare(world, case.fails))
                ended = True
            except Cut:
                pass
        cut.leave(after)
        device = Bare(after, case.fails)
        served.append(device.serving)
        for what in _wrong(case, device, ended):
            wrong.append(f"cut before change {at} of {count.points}: {what}")
        shutil.rmtree(world)
        shutil.rmtree(after)
    last = case.releases[-1] if case.releases else 0
    old = sum(n == last for n in served)
    return Outcome(len(served), old, len(served) - old, wrong)


def _wrong(case: Case, device: Bare, ended: bool) -> list[str]:
    wrong = []
    allowed = {case.end} if ended else case.may
    if device.serving not in allowed:
        wrong.append(f"release {device.serving} serves")
    if device.machine.status().serving.release != device.serving:
        wrong.append(f"the status says {device.machine.status().serving}")
    if not ended:
        case.act(device)
    state = device.machine.record.state
    if device.serving != case.end:
        wrong.append(f"gone on with, release {device.serving} serves")
    if state != ("rolled_back" if case.fails or case.act is _back_by_hand else "committed"):
        wrong.append(f"gone on with, it is {state}")
    current = device.store.current(MODEL)
    if (0 if current is None else current.release.release) != case.end:
        wrong.append(f"gone on with, 'current' leads to {current}")
    return wrong


def report(folder: Path) -> tuple[str, bool]:
    """The table, in Markdown, and whether all of it holds."""
    rows, holds = [], True
    for case in CASES:
        for loses in LOSSES:
            own = folder / f"{case.name} {loses}"
            own.mkdir()
            outcome = play(case, loses, own)
            holds &= not outcome.wrong
            mark = "; ".join(outcome.wrong) or "yes"
            rows.append((case.name, loses, outcome.cuts, outcome.old, outcome.new, mark))
    return table(("under way", "lost", "cuts", "old one serves", "new one serves", "holds"), rows), holds
