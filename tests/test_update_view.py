"""An update as those see it who are not on the box: the load topic's reply, the retained status, int8d watch, /metrics,
Home Assistant, int8d-make rollout status. A real daemon, broker and web server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.updates.status import Status
from models.cli import main
from tests.agent_process import DIGITS, ROOT, ROUTE
from tests.http_agent import Served
from tests.repository import Repo, make
from tests.test_cli import int8d
from tests.test_home_assistant import ENABLED, TOPIC, Update, UpdateState, _checked, _filled
from tests.updates.web import Web
from tests.variants import variant

BASE = "int8d/box1/v2/repository/models/digits"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    folder = tmp_path / "publisher"
    folder.mkdir()
    return make(folder)


@pytest.fixture
def web(repo: Repo) -> Iterator[Web]:
    web = Web(repo.folder)
    yield web
    web.close()


@pytest.fixture
def device(served: Callable[..., Served], repo: Repo, web: Web) -> Served:
    """One that looks for updates when it is told to, and commits soon."""
    updates = (
        f'[updates]\nrepository = "{web.url}"\nroot = "{repo.root}"\ninterval = 0\nshadow_s = 0.1\nprobation_s = 0.3\n'
    )
    return served(rest=ROUTE + ENABLED + updates)


def told(peer: Any, **parameters: Any) -> dict[str, Any]:
    """What the load topic answers."""
    client = peer("answers")
    payload = json.dumps({"parameters": parameters}).encode() if parameters else b""
    client.send(f"{BASE}/load", payload, ResponseTopic="answers", CorrelationData=b"7")
    message = client.receive(30)
    assert message.properties.CorrelationData == b"7"
    answer: dict[str, Any] = json.loads(message.payload)
    return answer


def watched(port: int) -> list[str]:
    lines = int8d("watch", "--once", "--wait", 0.5, "--port", port).stdout.splitlines()
    return lines[-1].split()


def test_an_update_is_seen_from_its_beginning_to_its_end(device: Served, repo: Repo, broker, peer) -> None:
    assert watched(broker.port) == ["box1", "digits", "1", "0", "idle", "-", "-", "-"]
    found = _checked(peer(TOPIC).receive().payload).components["digits_update"]
    assert isinstance(found, Update)
    repo.publish(variant(repo.folder.parent, 1), release=7)

    def entity() -> UpdateState:
        return msgspec.json.decode(_filled(found.value_template, peer(found.state_topic).receive().payload),
                                   type=UpdateState)  # fmt: skip

    assert told(peer, action="check")["available"]["release"] == 7
    assert watched(broker.port) == ["box1", "digits", "1", "0", "idle", "7", "-", "-"]
    assert entity() == UpdateState("0", "7", False, None)

    client = peer("unused")
    client.send(found.command_topic, found.payload_install.encode())
    statuses = peer(f"{BASE}/status")
    while (status := msgspec.json.decode(statuses.receive(30).payload, type=Status)).state != "committed":
        assert status.state != "rolled_back", status.reason
    assert watched(broker.port) == ["box1", "digits", "7", "7", "committed", "7", "100", "%", "-"]
    assert entity() == UpdateState("7", "7", False, None)
    page = device.metrics()
    assert page["int8d_update_release digits"] == 7
    assert page["int8d_update_state digits committed"] == 1
    assert page["int8d_update_checked_timestamp_seconds digits"] > 1.7e9
    options = ["--port", broker.port, "--wait", 0.5, "--json"]
    command = [sys.executable, "-m", "models.cli", "rollout", "status", "digits", "7", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["committed"] == 1


def test_what_goes_wrong_is_seen_in_codes(device: Served, repo: Repo, web: Web, broker, peer) -> None:
    assert told(peer, action="rollback")["error"]["code"] == "not_installed"
    assert told(peer, action="dance")["error"]["code"] == "invalid_input"
    repo.publish(DIGITS, release=1)
    assert told(peer)["state"] == "committed"
    assert told(peer, action="rollback")["reason"]["code"] == "by_hand"
    web.close()
    assert told(peer, action="check")["error"]["code"] == "unreachable"
    assert watched(broker.port)[-2:] == ["check:", "unreachable"]
    page = device.metrics()
    assert page["int8d_update_check_failing digits unreachable"] == 1
    assert page["int8d_update_rolled_back digits by_hand"] == 1
    assert page["int8d_update_release digits"] == 0


def test_rollout_status_needs_both_repository_and_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["rollout", "status", "digits", "7", "--repo", str(tmp_path)]) == 2
    assert "give --repo and --keys" in capsys.readouterr().err
