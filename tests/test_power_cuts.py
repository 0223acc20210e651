"""The power fails at each change that updates make on the disk, and what was not synced is lost: after the next start
the old release serves or the new one, whole, and the status says which.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.updates.reasons import Refused
from tests.updates.bare import MODEL, Bare
from tests.updates.power import LOSSES, Cut, Loses, PowerCut


def _first(device: Bare) -> None:
    device.update(1)


def _second(device: Bare) -> None:
    device.update(2)


def _back_by_hand(device: Bare) -> None:
    device.machine.roll_back_committed(Refused("by_hand"))


BAD = {"test": Refused("golden_differs")}, {"shadow": Refused("shadow_errors")}, {"probation": Refused("errors")}
# name: (releases committed before, what is done, what fails, what may serve after the cut, what at the end)
CASES: dict[str, tuple[tuple[int, ...], Callable[[Bare], None], dict[str, Refused], set[int], int]] = {
    "first": ((), _first, {}, {0, 1}, 1),
    "second": ((1,), _second, {}, {1, 2}, 2),
    "fails its test": ((1,), _second, BAD[0], {1}, 1),
    "fails its shadow": ((1,), _second, BAD[1], {1}, 1),
    "fails its probation": ((1,), _second, BAD[2], {1, 2}, 1),
    "back by hand": ((1, 2), _back_by_hand, {}, {1, 2}, 1),
}


def _prepared(folder: Path, releases: tuple[int, ...]) -> None:
    folder.mkdir()
    for number in releases:
        Bare(folder).update(number)


@pytest.mark.parametrize("loses", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_a_power_cut_at_any_change_of_the_disk_leaves_one_whole_release(
    case: str, loses: Loses, tmp_path: Path
) -> None:
    releases, act, fails, allowed, at_the_end = CASES[case]
    prepared = tmp_path / "prepared"
    _prepared(prepared, releases)
    shutil.copytree(prepared, tmp_path / "counted", symlinks=True)
    with PowerCut(tmp_path / "counted") as count:
        act(Bare(tmp_path / "counted", fails))
    count.leave(tmp_path / "whole")
    assert count.points > 3
    for at in range(count.points + 1):
        world, after = tmp_path / f"world{at}", tmp_path / f"after{at}"
        shutil.copytree(prepared, world, symlinks=True)
        ended = False
        with PowerCut(world, at, loses) as cut:
            try:
                act(Bare(world, fails))
                ended = True
            except Cut:
                pass
        cut.leave(after)
        device = Bare(after, fails)
        where = f"cut before change {at} of {count.points}"
        assert device.serving in ({at_the_end} if ended else allowed), where
        status = device.machine.status()
        assert status.serving.release == device.serving, where
        if act is _back_by_hand:
            if device.serving != at_the_end:
                _back_by_hand(device)
        else:
            act(device)
        assert device.serving == at_the_end, where
        assert device.machine.record.state == ("rolled_back" if fails or act is _back_by_hand else "committed"), where
        current = device.store.current(MODEL)
        assert (0 if current is None else current.release.release) == at_the_end, where
        shutil.rmtree(world)
        shutil.rmtree(after)
