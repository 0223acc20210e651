"""Brokers, agents and clients that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.agent_process import ROUTE, Agent, Peer
from tests.broker import Mosquitto
from tests.http_agent import Served
from tests.pki import make

# What takes minutes begins first, so that `make test`, which runs files side by side, does not wait for it at its end.
LONG = ("test_systemd.py", "test_imagenet.py", "test_under_fire.py", "test_update_kills.py", "test_workbench.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the agents and commands of the tests remember, they remember here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates; see tests/pki.py."""
    return make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def broker(tmp_path: Path, stack: ExitStack) -> Mosquitto:
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    stack.callback(broker.stop)
    return broker


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto, stack: ExitStack) -> Callable[..., Agent]:
    def make(**kwargs: object) -> Agent:
        agent = Agent(tmp_path, broker.port, **kwargs)  # type: ignore[arg-type]
        stack.callback(agent.kill)
        return agent

    return make


@pytest.fixture
def peer(broker: Mosquitto, stack: ExitStack) -> Callable[..., Peer]:
    def make(*topics: str, **kwargs: object) -> Peer:
        peer = Peer(broker.port, list(topics), **kwargs)  # type: ignore[arg-type]
        stack.callback(peer.close)
        return peer

    return make


@pytest.fixture
def served(tmp_path: Path, broker: Mosquitto, stack: ExitStack) -> Callable[..., Served]:
    def make(
        lines: str = "", rest: str = ROUTE, kind: type[Agent] = Agent, top: str = "", **environment: str
    ) -> Served:
        rest = f"{rest}\n[http]\nenabled = true\nport = 0\n{lines}\n"
        agent = kind(tmp_path, broker.port, rest, top=top, environment=environment)
        stack.callback(agent.kill)
        return Served(agent)

    return make


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One agent for tests that only look; it has no broker, which HTTP does not need."""
    folder = tmp_path_factory.mktemp("one")
    agent = Agent(folder, 1, ROUTE + "[http]\nenabled = true\nport = 0\ntimeout_s = 1.0\n", wait=False)
    yield Served(agent)
    assert agent.process.poll() is None, agent.log()
    assert "Traceback" not in agent.log()
    agent.kill()
