"""Brokers, agents and clients that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.agent_process import Agent, Peer
from tests.broker import Mosquitto
from tests.pki import make


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
