"""What happens in a run: a world of broker, agent, sender and the network between, and the scenarios by name.

Each scenario takes a world and a number of faults, and does that many to it while messages flow. What must hold is the
same for all: each id answered, and rightly. ``World.require`` adds what a scenario wants besides.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agent.engine import load
from agent.modelfile import read
from agent.predict import Predictor
from tests.agent_process import DIGITS, PICTURES, Agent, picture
from tests.broker import Mosquitto
from tests.chaos.checker import Verdict, check
from tests.chaos.faults import CannotRun, Clock, Disk, Timeline, choose
from tests.chaos.proxy import Proxy
from tests.chaos.sender import Once, Retrying, Sender

KEEPALIVE_S = 2
_ROUTE = '[[route]]\nsubscribe = "cameras/+/frame"\nmodel = "digits"\npublish = "chaos/replies"\n'
_PATIENCE_S = 20.0
# tests/broker.py has all that mosquitto holds saved after each change: with a backlog, a few messages a second.
_SAVES_EACH_SECOND = "autosave_on_changes false\n"
_YEAR_S = 365 * 86400
_JUMPS_S = (-86400, -3600, -1, 1, 3600, 86400, _YEAR_S, 20 * _YEAR_S)


@cache
def pictures() -> list[bytes]:
    return [picture(i) for i in range(len(list(PICTURES.glob("*.png"))))]


@cache
def expected() -> list[dict[str, Any]]:
    """What the model gives for each picture."""
    predictor = Predictor(load(read(DIGITS)), "digits", "1")
    replies = [json.loads(predictor.predict(p)) for p in pictures()]
    return [{key: reply[key] for key in ("outputs", "classes")} for reply in replies]


class World:
    """The processes of one run; all of it lies in ``folder``. The scenario starts them, and they end with the world."""

    def __init__(self, folder: Path, seed: str, rate: float) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.rate = folder, rate
        self.stack = ExitStack()
        self.timeline = Timeline(folder, seed)
        self.stack.callback(self.timeline.close)
        self.random = self.timeline.random
        self.problems: list[str] = []
        self._protocol = "5"
        self.agent: Agent
        self.broker: Mosquitto
        self.proxy: Proxy

    def start(self, proxy: bool = False, route: str = "", environment: dict[str, str] | None = None,
              protocol: str = "5") -> None:  # fmt: skip
        """The broker, then the agent, behind a proxy where asked for; ready when it returns."""
        (self.folder / "broker").mkdir(exist_ok=True)
        self.broker = Mosquitto(self.folder / "broker", _SAVES_EACH_SECOND)
        self.stack.callback(self.broker.stop)
        port = self.broker.port
        if proxy:
            self.proxy = Proxy(port, self.random.randrange(1 << 30))
            self.stack.callback(self.proxy.stop)
            port = self.proxy.port
        self._protocol = protocol
        own = {"XDG_STATE_HOME": str(self.folder / "state")}
        self.agent = Agent(self.folder, port, rest=_ROUTE + route, environment=own | (environment or {}),
                           broker=f'keepalive_s = {KEEPALIVE_S}\nprotocol = "{protocol}"\n')  # fmt: skip
        self.stack.callback(self.agent.kill)

    @contextmanager
    def sending(self, retrying: bool = False) -> Iterator[Sender]:
        """Messages flow in the block; after it, until each is answered or hope is gone."""
        port = self.broker.port
        sender = (
            Retrying(self.folder, pictures(), self.rate, port, "box1")
            if retrying
            else Once(self.folder, pictures(), self.rate, port, self._protocol == "5")
        )
        with sender:
            time.sleep(0.3)
            yield sender
            sender.finish(_PATIENCE_S)

    def require(self, holds: bool, why: str) -> None:
        if not holds:
            self.problems.append(why)

    # Faults

    def kill_agent(self) -> None:
        """SIGKILL, and a new one at once, which may be killed before it is ready."""
        with self.timeline.fault("SIGKILL agent"):
            self.agent.kill()
            self.agent.start(wait=False)

    def restart_agent(self) -> None:
        """SIGTERM, which may take what it has begun to its end, and a new one."""
        with self.timeline.fault("SIGTERM agent"):
            status = self.agent.terminate()
            # One that had not begun to serve yet dies of the signal.
            self.require(status in (0, -signal.SIGTERM), f"the agent ends with {status} on SIGTERM")
            self.agent.start(wait=False)

    def kill_broker(self, away_s: float) -> None:
        """SIGKILL, and a new one later, on the port of the old."""
        with self.timeline.fault("SIGKILL broker"):
            self.broker.kill()
            time.sleep(away_s)
            self.broker.start()

    def stop(self, what: str, seconds: float) -> None:
        """SIGSTOP and SIGCONT."""
        process = self.agent.process.pid if what == "agent" else self.broker.pid
        with self.timeline.fault(f"SIGSTOP {what}"):
            os.kill(process, signal.SIGSTOP)
            try:
                time.sleep(seconds)
            finally:
                os.kill(process, signal.SIGCONT)

    def reset(self) -> None:
        with self.timeline.fault("reset"):
            self.proxy.reset()

    def half_open(self, way: str) -> None:
        """The connection there is goes silent: up, down, or both; a new one is sound."""
        with self.timeline.fault(f"half-open, {way}"):
            if way == "both":
                self.proxy.swallow("up", "down")
            else:
                self.proxy.swallow("up" if way == "up" else "down")

    def delay(self, seconds: float) -> None:
        """For a while, each way takes up to 30 ms, give or take as much."""
        with self.timeline.fault("delay"):
            mean = self.random.uniform(0.001, 0.03)
            self.proxy.delay(mean, mean)
            time.sleep(seconds)
            self.proxy.delay(0)


# The scenarios


def agent_killed(world: World, faults: int) -> None:
    world.start()
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.3, 1.5)
            world.kill_agent()


def agent_killed_311(world: World, faults: int) -> None:
    """MQTT 3.1.1 has no Correlation Data: what comes again is known by the broker's mark and id alone."""
    world.start(protocol="3.1.1")
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.3, 1.5)
            world.kill_agent()


def agent_away(world: World, faults: int) -> None:
    """Long enough for the broker to hold thousands, which must not all be refused as too many at once."""
    world.start()
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.5, 1.5)
            with world.timeline.fault("agent away for 20 s"):
                world.agent.kill()
                time.sleep(20)
                world.agent.start(wait=False)
            world.timeline.pause(3.0, 5.0)


def broker_killed(world: World, faults: int) -> None:
    world.start()
    with world.sending(retrying=True):
        for _ in range(faults):
            world.timeline.pause(0.5, 2.5)
            world.kill_broker(world.random.uniform(0, 0.5))


def both_killed(world: World, faults: int) -> None:
    world.start()
    with world.sending(retrying=True):
        for what in choose(world.random, ["agent", "broker"], faults):
            world.timeline.pause(0.3, 1.5)
            if what == "agent":
                world.kill_agent()
            else:
                world.kill_broker(world.random.uniform(0, 0.5))


def stopped(world: World, faults: int) -> None:
    world.start()
    with world.sending():
        for what in choose(world.random, ["agent", "broker"], faults):
            world.timeline.pause(0.3, 1.5)
            # Some last so long that the other side, past its keep-alive, gives up the connection.
            world.stop(what, world.random.choice([0.2, 1.0, 1.8 * KEEPALIVE_S]))
            world.timeline.pause(0.5, 1.0)


def connection_reset(world: World, faults: int) -> None:
    world.start(proxy=True)
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.0, 1.0)
            world.reset()


def half_open(world: World, faults: int) -> None:
    world.start(proxy=True)
    with world.sending():
        for way in choose(world.random, ["up", "down", "both"], faults):
            world.timeline.pause(0.3, 1.0)
            world.half_open(way)
            time.sleep(2 * KEEPALIVE_S + 1)  # it has noticed, and is back


def delayed(world: World, faults: int) -> None:
    world.start(proxy=True)
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.0, 1.0)
            world.delay(world.random.uniform(0.5, 3.0))


def disk_full_agent(world: World, faults: int) -> None:
    """No state can be written: at the first start, while serving, and at the starts after a kill."""
    disk = Disk(world.folder / "state")
    world.stack.callback(disk.unmount)
    disk.fill()
    world.start()
    with world.sending():
        for i in range(faults):
            world.require("can't be written" in world.agent.log(), f"start {i + 1} on a full disk does not say so")
            world.timeline.pause(0.5, 1.0)
            with world.timeline.fault("disk full at start"):
                world.agent.kill()
                world.agent.start()
        with world.timeline.fault("disk full while serving"):
            disk.free()
            world.agent.kill()
            world.agent.start()
            world.require("can't be written" not in world.agent.log(), "it complains about a disk that has room")
            world.timeline.pause(0.5, 1.0)
            disk.fill()
            world.timeline.pause(1.0, 2.0)
        disk.free()


def disk_full_broker(world: World, faults: int) -> None:
    disk = Disk(world.folder / "broker")
    world.stack.callback(disk.unmount)
    world.start()
    with world.sending():
        for _ in range(faults):
            world.timeline.pause(0.3, 1.0)
            with world.timeline.fault("broker's disk full"):
                disk.fill()
                world.timeline.pause(1.5, 3.0)
                world.kill_agent()
                world.timeline.pause(0.5, 1.5)
                disk.free()


def clock_jumps(world: World, faults: int) -> None:
    """The agent's wall clock, forwards and backwards by up to decades, with a deadline of seconds on each message."""
    clock = Clock(world.folder / "clock")
    since_1970 = -int(time.time())
    world.start(route="deadline_ms = 10000\n", environment=clock.environment)
    with world.sending():
        for _ in range(faults):
            with world.timeline.fault("clock jump"):
                clock.jump(world.random.choice([*_JUMPS_S, since_1970]))
            world.timeline.pause(0.3, 1.0)
        with world.timeline.fault("start in 1970"):
            clock.jump(since_1970)
            world.agent.kill()
            world.agent.start()
        world.require('"time":"1970-01-' in world.agent.log(), "the clock did not jump: the fault was not there")


def mixed(world: World, faults: int) -> None:
    """Of everything that the broker's memory outlives, one after the other or one within the other's wake."""
    world.start(proxy=True)
    deeds: dict[str, Callable[[], None]] = {
        "kill": world.kill_agent,
        "restart": world.restart_agent,
        "stop agent": lambda: world.stop("agent", world.random.uniform(0.1, 2.0 * KEEPALIVE_S)),
        "stop broker": lambda: world.stop("broker", world.random.uniform(0.1, 2.0 * KEEPALIVE_S)),
        "reset": world.reset,
        "half-open": lambda: world.half_open(world.random.choice(["up", "down", "both"])),
        "delay": lambda: world.delay(world.random.uniform(0.1, 1.0)),
    }
    with world.sending():
        for what in choose(world.random, list(deeds), faults):
            world.timeline.pause(0.0, 2.0)
            deeds[what]()


def outbox(world: World, faults: int) -> None:
    """Replies go through a journal on disk, which fills up; and the clock jumps.

    Over a restart a stored reply's age is told by the wall clock alone, so the most that it may have lies beyond all
    jumps.
    """
    disk, clock = Disk(world.folder / "state"), Clock(world.folder / "clock")
    world.stack.callback(disk.unmount)
    route = f"outbox = true\n[outbox]\nmax_age_s = {30 * _YEAR_S}\n"
    world.start(proxy=True, route=route, environment=clock.environment)

    def disk_full() -> None:
        with world.timeline.fault("disk full"):
            disk.fill()
            world.timeline.pause(0.5, 2.0)
            if world.random.random() < 0.5:
                world.kill_agent()
                world.timeline.pause(0.5, 2.0)
            disk.free()

    def clock_jump() -> None:
        with world.timeline.fault("clock jump"):
            clock.jump(world.random.choice(_JUMPS_S))

    deeds: dict[str, Callable[[], None]] = {
        "kill": world.kill_agent,
        "reset": world.reset,
        "half-open": lambda: world.half_open(world.random.choice(["up", "down", "both"])),
        "disk": disk_full,
        "clock": clock_jump,
    }
    with world.sending():
        for what in choose(world.random, list(deeds), faults):
            world.timeline.pause(0.0, 2.0)
            deeds[what]()


@dataclass(frozen=True)
class Scenario:
    """faults: how many in the long form."""

    run: Callable[[World, int], None]
    faults: int


SCENARIOS = {
    "agent-killed": Scenario(agent_killed, 200),
    "agent-killed-311": Scenario(agent_killed_311, 60),
    "agent-away": Scenario(agent_away, 3),
    "broker-killed": Scenario(broker_killed, 30),
    "both-killed": Scenario(both_killed, 40),
    "stopped": Scenario(stopped, 20),
    "connection-reset": Scenario(connection_reset, 60),
    "half-open": Scenario(half_open, 9),
    "delayed": Scenario(delayed, 20),
    "disk-full-agent": Scenario(disk_full_agent, 10),
    "disk-full-broker": Scenario(disk_full_broker, 8),
    "clock-jumps": Scenario(clock_jumps, 40),
    "outbox": Scenario(outbox, 50),
    "mixed": Scenario(mixed, 60),
}


def run(name: str, folder: Path, seed: int, rate: float, faults: int | None = None) -> tuple[Verdict, Sequence[str]]:
    """Runs a scenario; its verdict, and what else went wrong. Raises ``CannotRun`` where this machine can't."""
    scenario = SCENARIOS[name]
    world = World(folder, f"{name} {seed}", rate)
    with world.stack:
        scenario.run(world, scenario.faults if faults is None else faults)
    return check(folder, expected()), world.problems


__all__ = ["SCENARIOS", "CannotRun", "run"]
