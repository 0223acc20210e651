"""Find and fetch through a real web server, over TLS by a private authority, each step in its own process."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.config.tables import Updates
from agent.repository.fetch import Ask as FetchAsk
from agent.repository.fetch import Fetched
from agent.repository.find import Ask, Found
from agent.repository.reasons import Refused
from agent.updates import child
from tests.nginx import Nginx
from tests.updates.simulator import Simulator

MODEL = bytes(range(256)) * 4000


class Device:
    """What a device asks of ``nginx``; its state lies in ``folder``."""

    def __init__(self, folder: Path, sim: Simulator, nginx: Nginx, **settings: object) -> None:
        self._folder = folder
        (folder / "staging").mkdir(parents=True)
        self._settings = Updates(repository=nginx.url, root=str(sim.root_file), **settings)  # type: ignore[arg-type]

    def find(self) -> Found:
        ask = Ask(folder=str(self._folder), device="box1", model="digits", settings=self._settings)
        return child.run("find", ask, Found, timeout_s=60)

    def part(self, found: Found) -> Path:
        assert found.target is not None
        return self._folder / "staging" / f"{found.target.sha256}.part"

    def fetch(self, found: Found) -> Fetched:
        assert found.target is not None
        ask = FetchAsk(target=found.target, part=str(self.part(found)), device="box1", settings=self._settings)
        return child.run("fetch", ask, Fetched, timeout_s=60)


@pytest.fixture
def sim(tmp_path: Path) -> Simulator:
    sim = Simulator(tmp_path / "publisher")
    sim.add(1, MODEL)
    sim.publish()
    return sim


@pytest.fixture
def nginx(tmp_path: Path, sim: Simulator, pki: Path, stack: ExitStack) -> Nginx:
    nginx = Nginx(tmp_path / "nginx", sim.folder, pki)
    stack.callback(nginx.stop)
    return nginx


def test_a_release_comes_through_nginx_over_tls(tmp_path: Path, sim: Simulator, nginx: Nginx, pki: Path) -> None:
    device = Device(tmp_path / "device", sim, nginx, ca=f"{pki}/ca.pem")
    found = device.find()
    assert found.target is not None
    assert found.target.release.release == 1
    assert device.fetch(found) == Fetched(len(MODEL), len(MODEL))
    assert device.part(found).read_bytes() == MODEL


def test_a_part_goes_on_where_it_broke_off(tmp_path: Path, sim: Simulator, nginx: Nginx, pki: Path) -> None:
    device = Device(tmp_path / "device", sim, nginx, ca=f"{pki}/ca.pem")
    found = device.find()
    device.part(found).write_bytes(MODEL[:700_001])
    assert device.fetch(found).transferred == len(MODEL) - 700_001
    assert device.part(found).read_bytes() == MODEL
    asked = [line for line in nginx.log() if "safetensors" in line]
    assert len(asked) == 1
    assert re.search(rf'" 206 {len(MODEL) - 700_001} ', asked[0])


def test_a_server_that_wants_client_certificates_gets_ours(
    tmp_path: Path, sim: Simulator, pki: Path, stack: ExitStack
) -> None:
    nginx = Nginx(tmp_path / "nginx", sim.folder, pki, clients=True)
    stack.callback(nginx.stop)
    own = {"cert": f"{pki}/box1.pem", "cert_key": f"{pki}/box1.key"}
    device = Device(tmp_path / "device", sim, nginx, ca=f"{pki}/ca.pem", **own)
    found = device.find()
    assert device.fetch(found).bytes == len(MODEL)
    without = Device(tmp_path / "without", sim, nginx, ca=f"{pki}/ca.pem")
    with pytest.raises(Refused, match=r"set updates\.cert and updates\.cert_key") as caught:
        without.find()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("authority", ["other/ca.pem", None])
def test_a_server_of_another_authority_is_refused(
    tmp_path: Path, sim: Simulator, nginx: Nginx, pki: Path, authority: str | None
) -> None:
    """None: the system's authorities do not know it either."""
    device = Device(tmp_path / "device", sim, nginx, ca=f"{pki}/{authority}" if authority else None)
    with pytest.raises(Refused, match=r"set updates\.ca") as caught:
        device.find()
    assert caught.value.code == "unreachable"
