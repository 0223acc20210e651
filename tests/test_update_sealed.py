"""Encrypted releases in a real daemon, and all who tell of a release follow it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.modelfile import read, write
from agent.updates import identity
from tests.agent_process import DIGITS, ROUTE, Peer, picture
from tests.http_agent import INFER, Served
from tests.test_vault import holding
from tests.updates.device import QUICK, Device
from tests.updates.traffic import Traffic
from tests.variants import shifted, variant

EVERYTHING = f"replicas = 2\n{ROUTE}[http]\nenabled = true\nport = 0\n[drift]\nevery = 1\n"


def test_an_encrypted_release_serves_and_its_plaintext_is_on_no_disk(tmp_path: Path, stack: ExitStack) -> None:
    recipient = identity.create(str(tmp_path / "box1.age"))
    device = stack.enter_context(Device(tmp_path, f'{QUICK}key = "{tmp_path}/box1.age"\n'))
    device.publish(3, recipients=(recipient,))
    status = device.load()
    assert status["state"] == "committed"
    assert min(status["test"].values()) > 0  # the model of int8d.toml was timed beside it
    assert device.answers() == 3
    plain = variant(tmp_path / "files", 3).read_bytes()
    assert holding(tmp_path / "files", plain[-2048:])  # the search finds it where it is
    assert holding(tmp_path / "state", plain[-2048:]) == []
    device.agent.kill()
    device.restart()
    assert device.answers() == 3
    assert holding(tmp_path / "state", plain[-2048:]) == []


def test_a_release_for_another_devices_key_is_not_taken(tmp_path: Path, stack: ExitStack) -> None:
    identity.create(str(tmp_path / "box1.age"))
    device = stack.enter_context(Device(tmp_path, f'{QUICK}key = "{tmp_path}/box1.age"\n'))
    device.publish(3, recipients=(identity.create(str(tmp_path / "other.age")),))
    status = device.load()
    assert (status["state"], status["reason"]["code"]) == ("rolled_back", "no_key")
    assert identity.recipients(str(tmp_path / "box1.age"))[0] in status["reason"]["message"]
    assert device.answers() == 0


def test_with_replicas_http_and_drift_all_tell_of_the_release_that_serves(tmp_path: Path, stack: ExitStack) -> None:
    recipient = identity.create(str(tmp_path / "box1.age"))
    device = stack.enter_context(Device(tmp_path, f'{QUICK}key = "{tmp_path}/box1.age"\n', rest=EVERYTHING))
    http = Served(device.agent)
    release = tmp_path / "with-statistics.int8.safetensors"  # of what drift looks at
    write(release, replace(shifted(read(DIGITS), 3), statistics=read(DIGITS).statistics))
    device.publish(3, release, recipients=(recipient,))
    with Traffic(device.broker.port) as traffic:
        assert traffic.after() == {0}
        assert told(device, http) == {"1"}
        before = drift(device)
        assert device.load()["state"] == "committed"
        assert traffic.after() == {3}
        assert told(device, http) == {"3"}
        assert http.ask("GET", "/v2/models/digits/versions/3/ready")[0] == 200
        assert http.ask("GET", "/v2/models/digits/versions/1/ready")[0] == 404
        assert 0 < drift(device) <= traffic.sent - before  # it counts anew
        assert device.command("rollback").returncode == 0
        assert traffic.after() == {0}
        assert told(device, http) == {"1"}
    assert traffic.shown == {0, 3}
    assert traffic.failed == set()


def told(device: Device, http: Served) -> set[str]:
    """The version, as HTTP, an answer over it, and the statistics tell it."""
    _, _, model = http.ask("GET", "/v2/models/digits")
    _, _, answer = http.ask("POST", INFER, picture(0))
    return {*model["versions"], answer["model_version"], stats(device)["models"]["digits"]["version"]}


def drift(device: Device) -> int:
    """Inferences of the model in service that were looked at."""
    time.sleep(1.1)  # the statistics come each second
    found: int = stats(device)["drift"]["digits"]["n"]
    return found


def stats(device: Device) -> dict[str, Any]:
    peer = Peer(device.broker.port, ["int8d/box1/stats"])
    try:
        found: dict[str, Any] = json.loads(peer.receive().payload)
        return found
    finally:
        peer.close()
