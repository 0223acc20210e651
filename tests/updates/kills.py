"""The table of kills: SIGKILL before, in and after every step, and what the next start serves.

    python -m tests.updates tables         # the table, into docs/updates.md

A device serves release 1. Release 2 is on its way, or is taken back, when the process is killed; it is started again,
must serve one of both, whole, and say which; then it goes on to the end by itself: what was asked for is not asked for
again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agent.updates.points import POINTS
from tests.updates.bad import golden_differs
from tests.updates.device import ENDED, Device, copied, prepare
from tests.updates.tables import table
from tests.updates.web import drip

MODULE = "tests.updates.killed"
_AT_ONCE = 4


def _update(device: Device) -> None:
    device.ask()


def _fails(device: Device) -> None:
    """Release 2 is no model: it fails its test."""
    device.ask()


def _back_on_probation(device: Device) -> None:
    device.ask()
    device.wait(lambda s: s["step"] == "probation")
    device.ask("rollback")


@dataclass(frozen=True)
class Way:
    """What is under way. points: where it is killed. may: what may serve then; end: what serves at its end."""

    name: str
    act: Callable[[Device], None]
    points: tuple[str, ...]
    may: frozenset[int]
    end: int
    probation_s: float = 0.5


_ROLLBACK = tuple(p for p in POINTS if p.endswith("rollback"))
_FORWARD = tuple(p for p in POINTS if p not in _ROLLBACK)
_SWITCHED = ("in the middle of switch", "after switch", "before probation", "after probation", "before commit",
             "in the middle of commit", "after commit")  # fmt: skip
WAYS = (
    Way("update", _update, (*_FORWARD, "in fetch"), frozenset({1, 2}), 2),
    Way("its test fails", _fails, _ROLLBACK, frozenset({1}), 1),
    Way("taken back on probation", _back_on_probation, _ROLLBACK, frozenset({1}), 1, 20.0),
)


@dataclass(frozen=True)
class Kill:
    way: Way
    point: str

    @property
    def serves(self) -> frozenset[int]:
        """After the restart."""
        if self.way.name == "update":
            return frozenset({2 if self.point in _SWITCHED else 1})
        return self.way.may


KILLS = tuple(Kill(way, point) for way in WAYS for point in way.points)


@dataclass(frozen=True)
class Outcome:
    """state: as published after the restart. serves, says: the release that an answer showed, and that the status
    named. end: of the way, after it was gone on with.
    """

    state: str
    serves: int
    says: int
    end: int


def play(kill: Kill, prepared: Path, folder: Path) -> Outcome:
    """Kills, starts again, looks, and waits for the end."""
    quick = f"shadow_s = 0.2\nprobation_s = {kill.way.probation_s}\nmin_free_bytes = 1\n"
    device = Device(folder, quick, module=MODULE, repo=copied(prepared, folder))
    try:
        if kill.way.act is _fails:
            _publish_bad(device)
        else:
            device.publish(2)
        if kill.point == "in fetch":
            _slow_down(device)
        device.start({"KILL_AT": kill.point})
        kill.way.act(device)
        assert device.agent.process.wait(30) == -9, device.agent.log()
        device.web.hostile.clear()
        seen = folder / "seen"
        device.restart({"HOLD_UNTIL": str(seen)})  # what serves first can be looked at for as long as that takes
        serves = device.answers()
        status = device.status()
        says, state = status["serving"]["release"], status["state"]
        seen.touch()
        device.wait(lambda s: s["state"] in ENDED and s["target"]["release"] == 2)  # nobody asks again
        return Outcome(state, serves, says, device.answers())
    finally:
        device.__exit__()


def _publish_bad(device: Device) -> None:
    """Release 2 has other golden outputs than it gives."""
    device.publish(2, golden_differs(device.folder))


def _slow_down(device: Device) -> None:
    """The file comes in pieces, so that there is a middle to be killed in."""
    device.web.hostile["2.int8.safetensors"] = drip


def good(kill: Kill, outcome: Outcome) -> bool:
    """Whether it is as it must be."""
    return outcome.serves in kill.serves and outcome.says == outcome.serves and outcome.end == kill.way.end


def play_all(folder: Path) -> dict[Kill, Outcome | Exception]:
    """Each of ``KILLS``, some at a time, for they wait more than they work."""
    prepared = folder / "prepared"
    prepared.mkdir()
    prepare(prepared)

    def one(number: int) -> Outcome | Exception:
        own = folder / str(number)
        own.mkdir()
        try:
            return play(KILLS[number], prepared, own)
        except Exception as e:
            return e

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(KILLS, pool.map(one, range(len(KILLS))), strict=True))


def report(folder: Path) -> tuple[str, bool]:
    """The table, in Markdown, and whether all of it holds. Takes a minute or two."""
    rows, holds = [], True
    for kill, outcome in play_all(folder).items():
        if isinstance(outcome, Exception):
            raise outcome
        holds &= good(kill, outcome)
        mark = "yes" if good(kill, outcome) else "**no**"
        row = (f"release {outcome.serves}", outcome.state, f"release {outcome.end}", mark)
        rows.append((kill.way.name, kill.point, *row))
    return table(("under way", "killed", "serves after the restart", "state", "at the end", "holds"), rows), holds
